"""Small detectors, one per kind of prediction, with random weights that give detections on random images."""

import copy
from typing import Any, Dict

import numpy as np
import pytest
import torch
import torch.nn as nn
from plain_net import PlainNet

CLASSES = 3
STRIDES = (4, 8)
_ANCHORS = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[0.5, 1.0], strides=STRIDES)
_SQUARES = dict(_ANCHORS, ratios=[1.0])
_CENTRES = dict(type='MlvlPointGenerator', offset=0, strides=STRIDES)
_DELTAS = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
_HEAD = dict(num_classes=CLASSES, in_channels=8, feat_channels=8, stacked_convs=1)
_DENSE_TEST = dict(nms_pre=50, min_bbox_size=0, score_thr=0.3, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)
_DISTANCES = dict(type='DistancePointBBoxCoder')
_RTMDET = dict(_HEAD, anchor_generator=_CENTRES, bbox_coder=_DISTANCES, norm_cfg=dict(type='BN'))
_GROUP_NORM = dict(type='GN', num_groups=2)
_REGIONS = dict(
    type='SingleRoIExtractor',
    roi_layer=dict(type='RoIAlign', output_size=4, sampling_ratio=0),
    out_channels=8,
    featmap_strides=STRIDES,
    finest_scale=12,
)
_BOX_HEAD = dict(
    type='Shared2FCBBoxHead',
    in_channels=8,
    fc_out_channels=16,
    roi_feat_size=4,
    num_classes=CLASSES,
    bbox_coder=_DELTAS,
)
_MASK_HEAD = dict(type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8, num_classes=CLASSES)
_TWO_STAGES = dict(
    train_cfg=None,
    rpn_head=dict(type='RPNHead', in_channels=8, feat_channels=8, anchor_generator=_ANCHORS, bbox_coder=_DELTAS),
    test_cfg=dict(
        rpn=dict(nms_pre=60, max_per_img=40, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.3, nms=dict(type='nms', iou_threshold=0.5), max_per_img=15, mask_thr_binary=0.5),
    ),
)
_MASK_REGIONS = dict(_REGIONS, roi_layer=dict(type='RoIAlign', output_size=6, sampling_ratio=2))
_STAGES = [dict(_BOX_HEAD, reg_class_agnostic=i == 0) for i in range(2)]

#: Models of mmdet, without backbone, neck and data preprocessor.
DETECTORS: Dict[str, Dict[str, Any]] = {
    'mask_rcnn': dict(
        _TWO_STAGES,
        type='MaskRCNN',
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=_REGIONS,
            bbox_head=_BOX_HEAD,
            mask_roi_extractor=_MASK_REGIONS,
            mask_head=_MASK_HEAD,
        ),
    ),
    'retinanet': dict(
        type='RetinaNet',
        bbox_head=dict(_HEAD, type='RetinaHead', anchor_generator=_ANCHORS, bbox_coder=_DELTAS),
        test_cfg=_DENSE_TEST,
    ),
    'rtmdet_ins': dict(
        type='RTMDet',
        bbox_head=dict(_RTMDET, type='RTMDetInsSepBNHead', share_conv=True, with_objectness=False),
        test_cfg=dict(_DENSE_TEST, mask_thr_binary=0.5),
    ),
    'faster_rcnn': dict(
        _TWO_STAGES,
        type='FasterRCNN',
        roi_head=dict(
            type='StandardRoIHead', bbox_roi_extractor=_REGIONS, bbox_head=dict(_BOX_HEAD, reg_class_agnostic=True)
        ),
    ),
    'cascade_mask_rcnn': dict(
        _TWO_STAGES,
        type='CascadeRCNN',
        roi_head=dict(
            type='CascadeRoIHead',
            num_stages=2,
            stage_loss_weights=[1, 1],
            bbox_roi_extractor=_REGIONS,
            bbox_head=_STAGES,
            mask_roi_extractor=_MASK_REGIONS,
            mask_head=_MASK_HEAD,
        ),
    ),
    'fcos': dict(
        type='FCOS',
        bbox_head=dict(_HEAD, type='FCOSHead', strides=STRIDES, norm_cfg=_GROUP_NORM),
        test_cfg=_DENSE_TEST,
    ),
    'atss': dict(
        type='ATSS',
        bbox_head=dict(
            _HEAD,
            type='ATSSHead',
            anchor_generator=_SQUARES,
            bbox_coder=_DELTAS,
            norm_cfg=_GROUP_NORM,
            loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True),
        ),
        test_cfg=_DENSE_TEST,
    ),
    'rtmdet': dict(
        type='RTMDet',
        bbox_head=dict(_RTMDET, type='RTMDetSepBNHead', share_conv=False, with_objectness=False),
        test_cfg=_DENSE_TEST,
    ),
}


def build_detector(name: str, **changes: Any) -> nn.Module:
    """Build a detector of :data:`DETECTORS` with reproducible weights; ``changes`` are named like ``head__type``."""
    pytest.importorskip('mmdet')
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, DefaultScope

    register_all_modules(init_default_scope=False)
    cfg = ConfigDict(
        copy.deepcopy(DETECTORS[name]),
        backbone=dict(type=PlainNet),
        neck=dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2),
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32, pad_mask=True),
    )
    for place, value in changes.items():
        *path, last = place.split('__')
        inner: Any = cfg
        for key in path:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The default initialization gives no detections. Large logits would make all scores 1, and large deltas
            # degenerate boxes.
            if parameter.ndim > 1:
                last = '_cls' in name or '_reg' in name
                nn.init.normal_(parameter, std=(0.3 if last else 1.2) / parameter[0].numel() ** 0.5)
            elif '_cls' in name:
                nn.init.zeros_(parameter)
            elif 'conv_reg' in name or 'rtm_reg' in name:  # distances
                nn.init.ones_(parameter)
    return model.eval()


def drawn_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image of rectangles and noise, ``(height, width, 3)`` uint8, BGR."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (height, width, 3))
    for _ in range(6):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        image[top : top + rng.integers(8, 40), left : left + rng.integers(8, 40)] += rng.integers(0, 190, 3)
    return image.clip(0, 255).astype(np.uint8)
