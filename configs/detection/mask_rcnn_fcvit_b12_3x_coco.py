# 3x, multi-scale: 36 epochs, 8 GPUs x 4 images = 32, lr 2e-4, short side 480 to 800. No published figure.
_base_ = [
    '_base_/models/mask_rcnn_fcvit.py',
    '_base_/datasets/coco_instance_ms.py',
    '_base_/schedules/adamw_3x.py',
    '_base_/default_runtime.py',
]
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/fcvit_b12_in1k.pth'

model = dict(
    backbone=dict(arch='b12', init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
