"""Configs of detectors whose anchors, points and RoI extractors have other strides than the maps."""

import pytest
from harness import ROOT

from fcvit_mm.engine.config import load_config
from fcvit_mm.preflight.checks import PreflightError, check_training
from fcvit_mm.preflight.strides import stride_problems

pytest.importorskip('mmdet')

PARTS = ('bbox', 'mask')


@pytest.fixture
def retinanet():
    options = {'model.backbone.arch': 'tiny', 'model.neck.in_channels': [64, 160, 320]}
    return load_config(str(ROOT / 'configs/detection/retinanet_fcvit_b12_coco.py'), options)


def test_strides_of_the_maps(make_config, retinanet):
    assert stride_problems(retinanet) == []
    for task in ('classification', 'detection', 'segmentation'):
        assert stride_problems(make_config(task)[0]) == []


def test_outputs_of_other_stages(retinanet):
    retinanet.model.backbone.out_indices = (0, 1, 2)
    retinanet.model.neck.in_channels = [32, 64, 160]
    assert stride_problems(retinanet) == [
        'model.bbox_head.anchor_generator.strides is [8, 16, 32, 64, 128], but the maps of model.backbone and its neck '
        'have the strides [4, 8, 16, 32, 64], so boxes would be assigned to wrong positions: set '
        'model.bbox_head.anchor_generator.strides=[4, 8, 16, 32, 64], or model.backbone.out_indices and output_stride '
        'to what the strides are for'
    ]


def test_dilated_backbone_within_another_model(make_config):
    cfg, _ = make_config('detection', {'model.backbone.output_stride': 16})
    cfg.model = dict(type='SoftTeacher', detector=cfg.model)
    names = ['rpn_head.anchor_generator.strides', *(f'roi_head.{part}_roi_extractor.featmap_strides' for part in PARTS)]
    found = stride_problems(cfg)
    assert [problem.partition(' is [4, 8, 16, 32')[0] for problem in found] == [f'model.detector.{n}' for n in names]
    assert 'set model.detector.roi_head.mask_roi_extractor.featmap_strides=[4, 8, 16, 16], or' in found[2]


def test_points_of_another_stride(retinanet):
    retinanet.model.bbox_head = dict(type='FCOSHead', num_classes=5, in_channels=256, strides=[4, 8, 16, 32, 64])
    retinanet.model.type = 'FCOS'
    (problem,) = stride_problems(retinanet)
    assert problem.startswith('model.bbox_head.strides is [4, 8, 16, 32, 64], but the maps')


def test_stride_of_0(retinanet):
    retinanet.model.bbox_head.anchor_generator.strides = [0, 16, 32, 64, 128]
    (problem,) = stride_problems(retinanet)
    assert 'anchor_generator.strides is [0, 16, 32, 64, 128], but the maps' in problem


def test_stages_of_cascade_rcnn():
    cfg = load_config(str(ROOT / 'configs/detection/cascade_mask_rcnn_dwnet_tiny_3x_coco.py'))
    assert stride_problems(cfg) == []
    cfg.model.roi_head.bbox_roi_extractor.featmap_strides = [8, 16, 32, 64]
    assert {problem.partition(' is')[0] for problem in stride_problems(cfg)} == {
        'model.roi_head.bbox_roi_extractor.featmap_strides'
    }


def test_training_does_not_start(make_config):
    with pytest.raises(PreflightError, match=r'rpn_head\.anchor_generator\.strides is \[4, 8, 16, 32, 64\], but'):
        check_training(make_config('detection', {'model.backbone.output_stride': 16})[0])
