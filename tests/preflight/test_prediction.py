import pytest

from fcvit_mm.preflight.prediction import prediction_problems

WINDOW = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({}, ''),
        (dict(mode='whole', stride=None), ''),
        (dict(stride=(32, 32)), ''),
        (dict(stride=None), "model.test_cfg.stride is None, but mode='slide' needs two positive numbers: height and"),
        (dict(stride=(0, 0)), "model.test_cfg.stride is (0, 0), but mode='slide' needs two positive numbers"),
        (dict(crop_size=32), "model.test_cfg.crop_size is 32, but mode='slide' needs two positive numbers"),
        (dict(stride=(48, 16)), 'model.test_cfg.stride is (48, 16), larger than crop_size=(32, 32), which leaves gaps'),
    ],
)
def test_sliding_window_settings(make_config, change, message):
    cfg, _ = make_config('segmentation')
    cfg.model.test_cfg = {**WINDOW, **change}
    problems = prediction_problems(cfg)
    assert len(problems) == bool(message) and ''.join(problems).startswith(message)


@pytest.mark.parametrize(
    ('nms', 'message'),
    [
        (dict(type='nms', iou_threshold=0.5), ''),
        (dict(type='soft_nms', iou_threshold=0.5, min_score=0.05), ''),
        (dict(iou_threshold=0.5), ''),
        (dict(type='nms', iou_threshold=0.5, class_agnostic=True, split_thr=100), ''),
        (dict(type='soft_nmss', iou_threshold=0.5), "(name 'soft_nmss' is not defined), which would end the run"),
        (dict(type='nms', iou_treshold=0.5), '), which would end the run at the first validation: give'),
    ],
)
def test_nms_settings(make_config, nms, message):
    cfg, _ = make_config('detection')
    assert prediction_problems(cfg) == []
    cfg.model.test_cfg.rcnn.nms = nms
    problems = prediction_problems(cfg)
    assert len(problems) == bool(message) and message in ''.join(problems)
    if message:
        assert problems[0].startswith('model.test_cfg.rcnn.nms cannot be applied (')
    cfg.default_scope = 'mmrotate'  # its boxes have five numbers
    assert prediction_problems(cfg) == []


def test_models_without_test_cfg(make_config):
    cfg, _ = make_config('classification')
    assert prediction_problems(cfg) == []
    cfg.model.test_cfg = dict(nms=dict(type='none'))
    assert prediction_problems(cfg) == []
