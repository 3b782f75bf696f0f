import pytest
from harness import LIBRARIES

from fcvit_mm.apis.stock import read_stock
from fcvit_mm.preflight import model
from fcvit_mm.preflight.checks import check_training, data_problems
from fcvit_mm.preflight.model import (
    built_model,
    channel_problems,
    class_weight_problems,
    one_class_problems,
    optimizer_problems,
    report_order_of_outputs,
    report_replaced_settings,
)

RESNET = [256, 512, 1024, 2048]


@pytest.mark.parametrize('task', LIBRARIES)
def test_matching_channels_need_no_trial_step(make_config, task, monkeypatch):
    monkeypatch.setattr(model, 'try_step', lambda cfg: pytest.fail('a step was taken'))
    assert channel_problems(make_config(task)[0]) == []


@pytest.mark.parametrize(
    'task, options, part, expected',
    [
        ('detection', {'model.neck.in_channels': RESNET}, 'neck', '[32, 64, 160, 320]'),
        ('detection', {'model.neck.in_channels': [32, 64, 160]}, 'neck', '[32, 64, 160, 320]'),
        ('segmentation', {'model.decode_head.in_channels': RESNET}, 'decode_head', '[32, 64, 160, 320]'),
        ('segmentation', {'model.auxiliary_head.in_channels': 1024}, 'auxiliary_head', '160'),
        ('classification', {'model.head.in_channels': 2048}, 'head', '320'),
    ],
)
def test_in_channels_of_another_backbone(make_config, task, options, part, expected):
    (problem,) = channel_problems(make_config(task, options)[0])
    (value,) = options.values()
    assert f'model.{part}.in_channels is {value}, but model.backbone (FCViT) returns [' in problem
    assert f'set model.{part}.in_channels={expected}. tools/replace_backbone.py' in problem


def test_in_index_beyond_the_outputs(make_config):
    (problem,) = channel_problems(make_config('segmentation', {'model.decode_head.in_index': [0, 1, 2, 5]})[0])
    assert problem == (
        'model.decode_head.in_index has 5, but model.backbone (FCViT) has 4 outputs: give numbers from 0 to 3'
    )


def test_in_index_in_reverse_order_of_in_channels(make_config):
    (problem,) = channel_problems(make_config('segmentation', {'model.decode_head.in_index': [3, 2, 1, 0]})[0])
    assert problem == (
        'model.decode_head.in_index=[3, 2, 1, 0] is in reverse of model.decode_head.in_channels=[32, 64, 160, 320]: '
        'give in_index in the order of the channels'
    )


def test_in_index_from_coarse_to_fine_is_a_warning(make_config, logged):
    options = {'model.decode_head.in_index': [3, 2, 1, 0], 'model.decode_head.in_channels': [320, 160, 64, 32]}
    cfg, _ = make_config('segmentation', options)
    assert channel_problems(cfg) == []
    report_order_of_outputs(cfg)
    assert logged == [
        'model.decode_head.in_index=[3, 2, 1, 0] is not in ascending order, but heads of mmseg expect the outputs from '
        'fine to coarse: give [0, 1, 2, 3] and in_channels in the same order, unless this is intended'
    ]


def test_in_index_from_fine_to_coarse_has_no_warning(make_config, logged):
    report_order_of_outputs(make_config('segmentation')[0])
    report_order_of_outputs(make_config('segmentation', {'model.auxiliary_head': None})[0])
    assert logged == []


@pytest.mark.parametrize('name', ['model.roi_head.train_cfg', 'model.rpn_head.train_cfg'])
def test_settings_that_a_detector_replaces_by_its_own(make_config, logged, name):
    cfg, _ = make_config('detection')
    cfg.merge_from_dict({f'{name}.more': 1})  # a key that the model does not set is kept
    report_replaced_settings(cfg)
    assert logged == []
    cfg.merge_from_dict({f'{name}.assigner': dict(type='NoSuchAssigner'), f'{name}.pos_weight': 2})
    report_replaced_settings(cfg)
    assert logged == [
        f'{name}.assigner, {name}.pos_weight: the settings in model.train_cfg replace these. Set them there'
    ]


def test_settings_that_a_head_keeps_are_not_reported(make_config, logged):
    pytest.importorskip('mmdet')  # mmseg's Mask2Former is built on it
    cfg, _ = make_config('segmentation')
    cfg.model = read_stock('mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024').model
    assert cfg.model.decode_head.train_cfg
    report_replaced_settings(cfg)
    assert logged == []


def test_in_channels_of_a_wrapped_model(make_config):
    cfg, _ = make_config('detection', {'model.neck.in_channels': RESNET})
    cfg.model = dict(type='SoftTeacher', detector=cfg.model)
    (problem,) = channel_problems(cfg)
    assert f'model.detector.neck.in_channels is {RESNET}, but model.detector.backbone (FCViT) returns [' in problem
    assert 'set model.detector.neck.in_channels=[32, 64, 160, 320]. ' in problem


def test_channels_are_reported_only_if_a_step_fails(make_config, monkeypatch):
    cfg, _ = make_config('detection', {'model.neck.in_channels': RESNET})
    monkeypatch.setattr(model, 'try_step', lambda cfg: None)
    assert channel_problems(cfg) == []

    def fail(cfg):
        raise model.StepError('the images are too small', 'model.roi_head')

    monkeypatch.setattr(model, 'try_step', fail)
    assert channel_problems(cfg) == []


def test_loss_that_is_logged_but_not_trained(make_config, logged):
    cfg, _ = make_config('segmentation')
    dice = dict(type='DiceLoss', loss_name='dice')
    cfg.model.decode_head.loss_decode = [dict(type='CrossEntropyLoss', loss_name='loss_ce'), dice]
    check_training(cfg)
    assert [text for text in logged if 'loss_name' in text] == [
        'model: loss_name=\'dice\' does not contain "loss", so this loss is logged but not trained: give '
        "loss_name='loss_dice'"
    ]


def test_unknown_and_missing_backbones_are_not_checked(make_config):
    cfg, _ = make_config('classification', {'model.head.in_channels': 7})
    cfg.model.backbone = dict(type='NoSuchBackbone')
    assert channel_problems(cfg) == []
    cfg.model.pop('backbone')
    assert channel_problems(cfg) == []


SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)


@pytest.mark.parametrize(
    'task, head, options, learns',
    [
        ('segmentation', 'decode_head', dict(), False),
        ('segmentation', 'auxiliary_head', dict(), False),
        ('segmentation', 'decode_head', dict(loss_decode=[dict(type='CrossEntropyLoss', loss_name='loss_a')]), False),
        ('segmentation', 'decode_head', dict(num_classes=2), True),
        ('segmentation', 'decode_head', dict(out_channels=1, loss_decode=SIGMOID), True),
        ('segmentation', 'decode_head', dict(loss_decode=[dict(type='CrossEntropyLoss'), SIGMOID]), True),
        ('segmentation', 'decode_head', dict(loss_decode=dict(type='NoSuchLoss')), True),
        ('classification', 'head', dict(loss=dict(type='CrossEntropyLoss')), False),
        ('classification', 'head', dict(loss=None), False),
        ('classification', 'head', dict(loss=None, type='MultiLabelLinearClsHead'), True),
        ('classification', 'head', dict(), False),
    ],
)
def test_softmax_over_one_class(make_config, task, head, options, learns):
    cfg, _ = make_config(task)
    for key, value in {'num_classes': 1, **options}.items():
        cfg.model[head][key] = value  # update would merge them
    found = one_class_problems(cfg)
    assert len(found) == (not learns)
    if found:
        assert found[0].startswith(
            f'model.{head}.num_classes is 1, whose softmax is always 1, so that the loss is always 0'
        )
        assert 'use num_classes=2, with a class for the background' in found[0]
        assert ('out_channels=1 with CrossEntropyLoss(use_sigmoid=True)' in found[0]) == (task == 'segmentation')


def test_detectors_with_one_class_are_not_reported(make_config):
    assert one_class_problems(make_config('detection', {'model.roi_head.bbox_head.num_classes': 1})[0]) == []


@pytest.mark.parametrize('number, fits', [(5, False), (6, True), (7, True), (8, False)])
def test_number_of_class_weights(make_config, number, fits):
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0] * number)
    cfg, _ = make_config('segmentation', {'model.decode_head.loss_decode': loss})
    expected = (
        f'model.decode_head.loss_decode.class_weight has {number} weights, but the head has 6 classes: give one for '
        'each class'
    )
    assert class_weight_problems(cfg) == ([] if fits else [expected])


def test_weights_of_classes_of_mask2former(make_config):
    head = dict(num_things_classes=5, num_stuff_classes=0, loss_cls=dict(class_weight=[1.0] * 80 + [0.1]))
    (problem,) = class_weight_problems(make_config('detection', {'model.panoptic_head': head})[0])
    assert 'model.panoptic_head.loss_cls.class_weight has 81 weights, but the head has 5 classes' in problem


def test_class_weights_of_a_head_without_num_classes(make_config):
    assert (
        class_weight_problems(make_config('detection', {'model.rpn_head.loss_cls.class_weight': [1.0, 2.0]})[0]) == []
    )


@pytest.mark.parametrize(
    'keys, words',
    [
        (dict(head=dict(lr_mult=2), norm=dict(decay_mult=0), absolute_pos_embed=dict(decay_mult=0)), None),
        ({'bakbone': dict(lr_mult=0.1), 'head': dict(lr_mult=2)}, "'bakbone' is part of no name"),
        ({'bakbone.stem': dict(lr_mult=0.1), 'steem.': dict(lr_mult=2), 'head': {}}, "did you mean 'stem'?"),
        (dict(absolute_pos_embed=dict(decay_mult=0)), None),
        (dict(layer7=dict(lr_mult=0.1)), 'and has no effect'),
    ],
)
def test_custom_keys_that_match_no_parameter(make_config, logged, keys, words):
    cfg, _ = make_config('classification')
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    assert optimizer_problems(cfg) == []
    assert logged == [] if words is None else any(words in line for line in logged)


def test_layer_decay_constructor_of_another_library(make_config):
    cfg, _ = make_config('detection')
    decay = dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6)
    cfg.optim_wrapper.constructor, cfg.optim_wrapper.paramwise_cfg = 'LearningRateDecayOptimizerConstructor', decay
    assert optimizer_problems(cfg) == [
        "optim_wrapper.constructor='LearningRateDecayOptimizerConstructor' does not know the layers of FCViT: use "
        'constructor="BackboneLayerDecayConstructor" with paramwise_cfg=dict(layer_decay_rate=...)'
    ]
    cfg.optim_wrapper.constructor = 'BackboneLayerDecayConstructor'
    cfg.optim_wrapper.paramwise_cfg = dict(layer_decay_rate=0.7)
    assert optimizer_problems(cfg) == []


def test_built_model_is_none_if_building_fails(make_config, capfd):
    cfg, _ = make_config('classification')
    weights = dict(built_model(cfg, 'meta').named_parameters())
    assert {value.device.type for value in weights.values()} == {'meta'}
    assert set(weights) == set(dict(built_model(cfg).named_parameters()))
    cfg.model.backbone.type = 'NoSuch'
    assert built_model(cfg) is None and capfd.readouterr().out == ''


HEADS = ['linear', 1.5, ['linear']]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize(
    ('task', 'name'), [('classification', 'head'), ('segmentation', 'decode_head'), ('segmentation', 'auxiliary_head')]
)
def test_heads_that_are_no_dicts_are_not_checked(make_config, logged, task, name, head):
    """A user's model may accept the name or the size of a head."""
    cfg, _ = make_config(task)
    cfg.model[name] = head
    assert one_class_problems(cfg) == class_weight_problems(cfg) == channel_problems(cfg) == []
    report_order_of_outputs(cfg)
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []
