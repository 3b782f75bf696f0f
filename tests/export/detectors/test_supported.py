"""Unsupported heads and settings are refused, and the error names them."""

import pytest
import torch.nn as nn
from detectors import build_detector

from fcvit_mm.errors import UserError
from fcvit_mm.export.detectors.detections import Detections


class Own(nn.Module):
    """Methods that change the prediction of a head or extractor."""

    def _predict_by_feat_single(self):
        pass

    def predict_bbox(self):
        pass

    def forward(self, x):
        return x


def override_methods(module):
    """Replace the class of an object by a subclass with the methods of ``Own``."""
    kind = type(module)
    module.__class__ = type(f'Own{kind.__name__}', (kind,), {k: v for k, v in vars(Own).items() if k[:2] != '__'})


@pytest.mark.parametrize(
    'name, place, message',
    [
        (
            'retinanet',
            'bbox_head',
            'OwnRetinaHead predicts in its own way, which cannot be exported as one graph. Complete',
        ),
        ('faster_rcnn', 'rpn_head', 'OwnRPNHead proposes in its own way'),
        ('faster_rcnn', 'roi_head', 'OwnStandardRoIHead predicts in its own way'),
        ('faster_rcnn', 'roi_head.bbox_head', 'OwnShared2FCBBoxHead predicts boxes in its own way'),
        ('cascade_mask_rcnn', 'roi_head.mask_head.1', 'OwnFCNMaskHead predicts masks in its own way'),
        ('mask_rcnn', 'roi_head.mask_roi_extractor', 'OwnSingleRoIExtractor extracts regions in its own way.*--part n'),
    ],
)
def test_heads_with_overridden_methods_are_refused(name, place, message):
    model = build_detector(name)
    override_methods(model.get_submodule(place))
    with pytest.raises(UserError, match=message):
        Detections(model)


_HEAD = dict(num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)
_GFL = dict(
    norm_cfg=dict(type='GN', num_groups=2),
    anchor_generator=dict(
        type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[4, 8]
    ),
)


@pytest.mark.parametrize(
    'name, changes, message',
    [
        # Heads of mmdet that override the prediction of one image, or of a batch.
        ('atss', dict(bbox_head=dict(_HEAD, type='GFLHead', **_GFL)), 'GFLHead predicts in its own way'),
        ('atss', dict(bbox_head=dict(_HEAD, type='YOLOXHead', strides=(4, 8))), 'YOLOXHead predicts in its own way'),
        (
            'retinanet',
            dict(test_cfg__nms=dict(type='soft_nms')),
            "RetinaHead has nms with type 'soft_nms'",
        ),
        ('fcos', dict(test_cfg__nms=dict(iou_threshold=0.5, offset=1)), 'FCOSHead has nms with offset'),
        ('fcos', dict(test_cfg__nms=None), 'the test_cfg of FCOSHead lacks nms'),
        ('atss', dict(test_cfg__min_bbox_size=3), 'min_bbox_size 3 is measured in the original image.*min_bbox_size=0'),
        ('retinanet', dict(bbox_head__bbox_coder=dict(type='TBLRBBoxCoder')), 'TBLRBBoxCoder decodes boxes in its own'),
        (
            'faster_rcnn',
            dict(roi_head__bbox_roi_extractor__roi_layer=dict(type='RoIPool', output_size=4)),
            'RoIPool pools regions by its own rule',
        ),
    ],
)
def test_unsupported_settings_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        Detections(build_detector(name, **changes))


def test_the_function_of_a_pure_python_config_is_supported():
    from mmcv.ops import nms

    Detections(build_detector('retinanet', test_cfg__nms=dict(type=nms, iou_threshold=0.5)))


def test_other_models_are_refused():
    with pytest.raises(
        UserError, match='Linear predicts in its own way.*Complete detectors are supported for Faster, Mask'
    ):
        Detections(nn.Linear(2, 2))
