import pytest
from harness import LIBRARIES

from fcvit_mm.preflight import model
from fcvit_mm.preflight.model import channel_problems

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
