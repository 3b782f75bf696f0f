import sys

import pytest
from harness import LIBRARIES
from mmengine.registry import MODELS

from fcvit_mm.preflight.checks import check_testing
from fcvit_mm.preflight.misspelt_settings import report_misspelt_settings


@pytest.mark.parametrize('task', LIBRARIES)
def test_correct_settings_are_not_reported(make_config, logged, task):
    report_misspelt_settings(make_config(task)[0])
    assert logged == []


@pytest.mark.parametrize(
    ('task', 'options', 'text'),
    [
        (
            'detection',
            {'model.test_cfg.rcnn.score_threshold': 0.3},
            "model.test_cfg.rcnn: the model reads no setting 'score_threshold'; did you mean 'score_thr'?",
        ),
        (
            'detection',
            {'model.train_cfg.rpn_proposals': {'nms_pre': 300}},
            "model.train_cfg: the model reads no setting 'rpn_proposals'; did you mean 'rpn_proposal'?",
        ),
        (
            'detection',
            {'train_dataloader.dataset.filter_cfg': {'filter_empty': True}},
            "train_dataloader.dataset.filter_cfg: CocoDataset reads no setting 'filter_empty'; did you mean "
            "'filter_empty_gt'?",
        ),
        (
            'segmentation',
            {'train_dataloader.dataset.metainfo.CLASSES': ('a', 'b')},
            "train_dataloader.dataset.metainfo: BaseSegDataset reads no setting 'CLASSES'; did you mean 'classes'?",
        ),
        (
            'segmentation',
            {'model.test_cfg.crop_sizes': (64, 64)},
            "model.test_cfg: the model reads no setting 'crop_sizes'; did you mean 'crop_size'?",
        ),
        (
            'classification',
            {'optim_wrapper.paramwise_cfg': {'norm_decay_multi': 0.0}},
            "optim_wrapper.paramwise_cfg: DefaultOptimWrapperConstructor reads no setting 'norm_decay_multi'; did you "
            "mean 'norm_decay_mult'?",
        ),
        (
            'classification',
            {
                'optim_wrapper.constructor': 'BackboneLayerDecayConstructor',
                'optim_wrapper.paramwise_cfg': {'layer_decay_rate': 0.9, 'custom_keys': {'norm': {'decay_multi': 0.0}}},
            },
            "optim_wrapper.paramwise_cfg.custom_keys['norm']: BackboneLayerDecayConstructor reads no setting "
            "'decay_multi'; did you mean 'decay_mult'?",
        ),
        (
            'classification',
            {'auto_scale_lr': {'enabled': True, 'base_batch_size': 4}},
            "auto_scale_lr: the runner reads no setting 'enabled'; did you mean 'enable'?",
        ),
        (
            'classification',
            {'env_cfg.cudnn_bench': True},
            "env_cfg: the runner reads no setting 'cudnn_bench'; did you mean 'cudnn_benchmark'?",
        ),
    ],
)
def test_misspelt_settings_are_reported(make_config, logged, task, options, text):
    report_misspelt_settings(make_config(task, options)[0])
    assert logged == [text]


@pytest.mark.parametrize(
    ('task', 'options'),
    [
        ('detection', {'model.test_cfg.rcnn.my_own_note': 1}),  # resembles no setting
        ('detection', {'model.train_cfg.rpn.debug': False}),  # in configs of the libraries, which no longer read it
        ('detection', {'model.train_cfg.rcnn.mask_size': 28}),  # read by a function that the mask head imports
        ('detection', {'model.roi_head.mask_head': None}),  # mask_size in train_cfg.rcnn remains
        (
            'classification',
            {'model.train_cfg': {'augments': [{'type': 'Mixup', 'alpha': 0.8}]}},
        ),  # read by the default data_preprocessor
        ('classification', {'model.head.type': 'NoSuchHead', 'optim_wrapper.paramwise_cfg': None}),
        ('classification', {'optim_wrapper.constructor': 'NoSuchOne', 'optim_wrapper.paramwise_cfg': {'lr_mul': 1}}),
        ('segmentation', {'model.test_cfg': None, 'env_cfg': None, 'auto_scale_lr': None}),
    ],
)
def test_other_unread_settings_are_not_reported(make_config, logged, task, options):
    report_misspelt_settings(make_config(task, options)[0])
    assert logged == []


def test_registries_with_functions_and_unusual_objects(make_config, logged):
    """A registry may contain functions, and a module objects whose attributes raise errors."""

    class Odd:
        def __getattr__(self, name):
            raise RuntimeError(name)

    MODELS.register_module(name='make_something', module=lambda: None, force=True)
    Named = type('Named', (), {'__module__': __name__, 'part': 'make_something'})
    MODELS.register_module(name='Named', module=Named, force=True)
    sys.modules[__name__].odd = Odd()
    misspelt = 'par' + 'tt'  # the name must not occur in this file, whose source is searched
    try:
        cfg, _ = make_config('classification', {'model.head.type': 'Named', f'model.test_cfg.{misspelt}': 1})
        report_misspelt_settings(cfg)
    finally:
        del sys.modules[__name__].odd
        for name in ('make_something', 'Named'):
            MODELS.module_dict.pop(name)
    assert logged == ["model.test_cfg: the model reads no setting 'partt'; did you mean 'part'?"]


def test_misspelt_settings_are_reported_before_testing(make_config, logged, tmp_path):
    cfg, _ = make_config('segmentation', {'model.test_cfg.crop_sizes': (64, 64), 'test_evaluator.iou_metric': ['mIoU']})
    with pytest.raises(Exception, match='the checkpoint'):
        check_testing(cfg, str(tmp_path / 'missing.pth'))
    assert [text.partition(':')[0] for text in logged] == ['test_evaluator', 'model.test_cfg']
