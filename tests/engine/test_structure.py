import pytest
from mmengine.config import Config

from fcvit_mm.engine.structure import replace_none_by_dict, structure_problems


def test_options_below_a_value_of_none():
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=None, arch='tiny')), hooks=None))
    options = {
        'model.backbone.init_cfg.type': 'Pretrained',
        'hooks.a.b': 1,
        'new.a': 2,
        'model.backbone.arch.depths': 3,
    }
    replace_none_by_dict(cfg, options)
    assert cfg.model.backbone == dict(init_cfg={}, arch='tiny') and cfg.hooks == {} and 'new' not in cfg
    options.pop('model.backbone.arch.depths')
    cfg.merge_from_dict(options)
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained') and cfg.hooks == dict(a=dict(b=1))


def test_options_below_tuples():
    """MMEngine only changes lists."""
    cfg = Config(
        dict(custom_hooks=(dict(type='A', sizes=(1, 2)), dict(type='B')), pipelines=[(dict(type='C'),)], a='b')
    )
    options = {
        'custom_hooks.0.type': 'D',
        'custom_hooks.0.sizes': (3,),
        'pipelines.0.0.prob': 0.5,
    }
    replace_none_by_dict(cfg, {**options, 'custom_hooks.2.type': 'E', 'a.0.b': 1, 'pipelines.x.b': 1})
    cfg.merge_from_dict(options)
    assert cfg.custom_hooks == [dict(type='D', sizes=(3,)), dict(type='B')]
    assert cfg.pipelines == [[dict(type='C', prob=0.5)]] and cfg.a == 'b'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            dict(train_dataloader=dict(dataset='CustomDataset')),
            "train_dataloader.dataset is 'CustomDataset', expected a dict, such as dict(type='CustomDataset'); on the "
            'command line train_dataloader.dataset.type=CustomDataset',
        ),
        (dict(train_dataloader=[1]), "train_dataloader is '[1]', expected a dict"),
        (
            dict(test_dataloader=dict(dataset=dict(pipeline=dict(type='A')))),
            "test_dataloader.dataset.pipeline is \"{'type': 'A'}\", expected a list",
        ),
        (
            dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=[dict(type='A')]))),
            "train_dataloader.dataset.dataset is \"[{'type': 'A'}]\", expected a dict",
        ),
        (
            dict(train_dataloader=dict(dataset=dict(datasets=dict(type='A')))),
            "train_dataloader.dataset.datasets is \"{'type': 'A'}\", expected a list",
        ),
        (
            dict(train_dataloader=dict(dataset=dict(datasets=[dict(type='A', pipeline=[]), None]))),
            "train_dataloader.dataset.datasets.1 is 'None', expected a dict",
        ),
        (dict(val_dataloader=dict(sampler=1.5)), "val_dataloader.sampler is '1.5', expected a dict"),
        (dict(optim_wrapper=dict(paramwise_cfg=1)), "optim_wrapper.paramwise_cfg is '1', expected a dict"),
        (dict(optim_wrapper=dict(optimizer=1)), "optim_wrapper.optimizer is '1', expected a dict"),
        (dict(env_cfg=dict(mp_cfg=5)), "env_cfg.mp_cfg is '5', expected a dict"),
        (dict(load_from=True), "load_from is 'True', expected a path"),
        (dict(custom_hooks=[dict(type='')]), 'custom_hooks.0.type is empty, expected the name of a class'),
        (dict(work_dir=5), "work_dir is '5', expected a path"),
        (dict(model=dict(data_preprocessor=5)), "model.data_preprocessor is '5', expected a dict"),
        (
            dict(default_hooks=dict(logger=None, checkpoint='CheckpointHook')),
            "default_hooks.checkpoint is 'CheckpointHook', expected a dict, such as dict(type='CheckpointHook'); on "
            'the command line default_hooks.checkpoint.type=CheckpointHook',
        ),
        (dict(custom_hooks=[None]), "custom_hooks.0 is 'None', expected a dict"),
        (dict(val_evaluator=[dict(type='A'), 5]), "val_evaluator.1 is '5', expected a dict"),
        (dict(test_evaluator=5), "test_evaluator is '5', expected a dict or a list of dicts"),
        (dict(model=dict(test_cfg=5)), "model.test_cfg is '5', expected a dict"),
        (dict(custom_hooks={'0': dict(type='A')}), "custom_hooks is \"{'0': {'type': 'A'}}\", expected a list"),
    ],
)
def test_parts_of_a_wrong_type_are_reported(content, message):
    assert list(structure_problems(Config(content))) == [message]


def test_valid_parts():
    content = dict(model=dict(backbone=dict(type='A')), custom_hooks=[], train_dataloader=None, visualizer=dict())
    assert list(structure_problems(Config(content))) == []
    assert list(structure_problems(Config(dict(model=None, val_dataloader=dict(dataset=dict(pipeline=())))))) == []
