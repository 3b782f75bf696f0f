"""Small models and images to export."""

import os

import cv2
import numpy as np
import pytest
import torch
import torch.nn as nn

from fcvit_mm.apis.load import load_network
from fcvit_mm.export.formats import FORMATS

# One block per stage, because recording takes seconds for each block.
BACKBONE = """dict(
    type='FCViT', arch=dict(depths=(1, 1, 1, 1), channels=(16, 24, 32, 40), mlp_ratios=(2, 2, 2, 2)),
    kernel_sizes=(5, ), layer_scale_init_value=0.5, out_indices={stages})"""
CONFIGS = {
    'classification': """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
data_preprocessor = dict(num_classes=3, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='ImageClassifier', backbone={backbone}, neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=48, edge='short'),
    dict(type='CenterCrop', crop_size=40), dict(type='PackInputs')]))
""",
    'detection': """
default_scope = 'mmdet'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
model = dict(
    type='RetinaNet', backbone={backbone}, data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[100., 110., 120.], std=[58., 57., 56.], bgr_to_rgb=True, pad_size_divisor=32),
    neck=dict(type='FPN', in_channels=[16, 24], out_channels=8, num_outs=3),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=8, stacked_convs=1, feat_channels=8,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                              strides=[4, 8, 16]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])),
    test_cfg=dict(nms_pre=50, min_bbox_size=0, score_thr=0.3, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20))
test_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(75, 75), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_shape', 'scale_factor'))]))
""",
    'segmentation': """
default_scope = 'mmseg'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)), backbone={backbone},
    decode_head=dict(
        type='UPerHead', in_channels=[16], in_index=[0], pool_scales=(1, 6), channels=8,
        num_classes=4, norm_cfg=dict(type='BN'), align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
""",
}
LIBRARIES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg'}


@pytest.fixture(scope='session')
def needs():
    """Return a function that skips the test if torch or a package for this format is missing or too old."""

    def check(kind):
        if kind == 'aot_inductor' and not os.environ.get('LONG_EXPORTS'):
            pytest.skip('compiles for a minute: set LONG_EXPORTS=1')
        if kind != 'torchscript':
            if torch.__version__ < '2.9':
                pytest.skip('older versions export ONNX from TorchScript')
            for package in FORMATS[kind].packages:
                pytest.importorskip(package)

    return check


@pytest.fixture(scope='session')
def saved(tmp_path_factory):
    """Return a function that returns the config and checkpoint of a small model of a task, with random norms."""
    made = {}

    def get(task):
        pytest.importorskip(LIBRARIES[task])
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            backbone = BACKBONE.format(stages='(0, 1)' if task == 'detection' else '(0, )')
            (folder / 'small.py').write_text(CONFIGS[task].format(backbone=backbone))
            torch.manual_seed(0)
            model = load_network(str(folder / 'small.py')).model
            for name, parameter in model.named_parameters():
                if name.startswith('bbox_head'):  # otherwise it detects nothing
                    nn.init.normal_(parameter, std=0.0 if parameter.ndim == 1 else 0.05)
                elif parameter.ndim == 1:
                    nn.init.uniform_(parameter, 0.5, 1.5)
            content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b', 'c'))))
            torch.save(content, folder / 'small.pth')
            made[task] = str(folder / 'small.py'), str(folder / 'small.pth')
        return made[task]

    return get


@pytest.fixture(scope='session')
def samples(tmp_path_factory):
    """A folder with three class folders of two images each."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for name in 'abc':
        (folder / name).mkdir()
        for index in range(2):
            cv2.imwrite(str(folder / name / f'{index}.png'), rng.integers(0, 255, (50, 60, 3), np.uint8))
    return folder
