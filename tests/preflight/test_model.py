import pytest
from harness import LIBRARIES

from fcvit_mm.preflight import model
from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.model import (
    built_model,
    channel_problems,
    class_weight_problems,
    one_class_problems,
    optimizer_problems,
    report_order_of_outputs,
)

RESNET = [256, 512, 1024, 2048]


@pytest.mark.parametrize('task', LIBRARIES)
def test_components_that_fit_take_no_step(own, task, monkeypatch):
    monkeypatch.setattr(model, 'try_step', lambda cfg: pytest.fail('a step was taken'))
    assert channel_problems(own(task)[0]) == []


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
def test_channels_of_another_backbone(own, task, options, part, expected):
    (problem,) = channel_problems(own(task, options)[0])
    (value,) = options.values()
    assert f'model.{part}.in_channels is {value}, but model.backbone (FCViT) returns [' in problem
    assert f'set model.{part}.in_channels={expected}. tools/replace_backbone.py' in problem


def test_outputs_that_the_backbone_does_not_have(own):
    (problem,) = channel_problems(own('segmentation', {'model.decode_head.in_index': [0, 1, 2, 5]})[0])
    assert problem == (
        'model.decode_head.in_index has 5, but model.backbone (FCViT) has 4 outputs: give numbers from 0 to 3'
    )


def test_outputs_in_reverse_of_their_channels(own):
    (problem,) = channel_problems(own('segmentation', {'model.decode_head.in_index': [3, 2, 1, 0]})[0])
    assert problem == (
        'model.decode_head.in_index=[3, 2, 1, 0] is in reverse of model.decode_head.in_channels=[32, 64, 160, 320]: '
        'give in_index in the order of the channels'
    )


def test_outputs_from_coarse_to_fine(own, said):
    options = {'model.decode_head.in_index': [3, 2, 1, 0], 'model.decode_head.in_channels': [320, 160, 64, 32]}
    cfg, _ = own('segmentation', options)
    assert channel_problems(cfg) == []
    report_order_of_outputs(cfg)
    assert said == [
        'model.decode_head.in_index=[3, 2, 1, 0] is not in ascending order, but heads of mmseg expect the outputs from '
        'fine to coarse: give [0, 1, 2, 3] and in_channels in the same order, unless this is intended'
    ]


def test_outputs_from_fine_to_coarse(own, said):
    report_order_of_outputs(own('segmentation')[0])
    report_order_of_outputs(own('segmentation', {'model.auxiliary_head': None})[0])
    assert said == []


def test_channels_of_a_model_in_a_model(own):
    cfg, _ = own('detection', {'model.neck.in_channels': RESNET})
    cfg.model = dict(type='SoftTeacher', detector=cfg.model)
    (problem,) = channel_problems(cfg)
    assert f'model.detector.neck.in_channels is {RESNET}, but model.detector.backbone (FCViT) returns [' in problem
    assert 'set model.detector.neck.in_channels=[32, 64, 160, 320]. ' in problem


def test_a_suspicion_without_a_failing_step_is_none(own, monkeypatch):
    cfg, _ = own('detection', {'model.neck.in_channels': RESNET})
    monkeypatch.setattr(model, 'try_step', lambda cfg: None)
    assert channel_problems(cfg) == []

    def fail(cfg):
        raise model.StepError('the images are too small', 'model.roi_head')

    monkeypatch.setattr(model, 'try_step', fail)
    assert channel_problems(cfg) == []


def test_backbones_that_return_no_maps_or_that_are_unknown_are_left_to_the_run(own):
    cfg, _ = own('classification', {'model.head.in_channels': 7})
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
def test_one_class(own, task, head, options, learns):
    cfg, _ = own(task)
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


def test_detectors_tell_one_class_from_background(own):
    assert one_class_problems(own('detection', {'model.roi_head.bbox_head.num_classes': 1})[0]) == []


@pytest.mark.parametrize('number, fits', [(5, False), (6, True), (7, True), (8, False)])
def test_weights_of_classes(own, number, fits):
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0] * number)
    cfg, _ = own('segmentation', {'model.decode_head.loss_decode': loss})
    expected = (
        f'model.decode_head.loss_decode.class_weight has {number} weights, but the head has 6 classes: give one for '
        'each class'
    )
    assert class_weight_problems(cfg) == ([] if fits else [expected])


def test_weights_of_classes_of_mask2former(own):
    head = dict(num_things_classes=5, num_stuff_classes=0, loss_cls=dict(class_weight=[1.0] * 80 + [0.1]))
    (problem,) = class_weight_problems(own('detection', {'model.panoptic_head': head})[0])
    assert 'model.panoptic_head.loss_cls.class_weight has 81 weights, but the head has 5 classes' in problem


def test_weights_of_classes_without_a_number(own):
    assert class_weight_problems(own('detection', {'model.rpn_head.loss_cls.class_weight': [1.0, 2.0]})[0]) == []


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
def test_settings_of_parameters_that_are_none(own, said, keys, words):
    cfg, _ = own('classification')
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    assert optimizer_problems(cfg) == []
    assert said == [] if words is None else any(words in line for line in said)


def test_layer_decay_of_another_library(own):
    cfg, _ = own('detection')
    decay = dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6)
    cfg.optim_wrapper.constructor, cfg.optim_wrapper.paramwise_cfg = 'LearningRateDecayOptimizerConstructor', decay
    assert optimizer_problems(cfg) == [
        "optim_wrapper.constructor='LearningRateDecayOptimizerConstructor' does not know the layers of FCViT: use "
        'constructor="BackboneLayerDecayConstructor" with paramwise_cfg=dict(layer_decay_rate=...)'
    ]
    cfg.optim_wrapper.constructor = 'BackboneLayerDecayConstructor'
    cfg.optim_wrapper.paramwise_cfg = dict(layer_decay_rate=0.7)
    assert optimizer_problems(cfg) == []


def test_a_model_that_cannot_be_built_is_none(own, capfd):
    cfg, _ = own('classification')
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
def test_heads_that_are_no_dicts_are_left_to_the_model(own, said, task, name, head):
    """A model of its own may take the name or the size of a head."""
    cfg, _ = own(task)
    cfg.model[name] = head
    assert one_class_problems(cfg) == class_weight_problems(cfg) == channel_problems(cfg) == []
    report_order_of_outputs(cfg)
    assert data_problems(cfg, ['train_dataloader']) == [] and said == []
