# 1x: 12 epochs, 8 GPUs x 4 images = 32, lr 2e-4. No published figure; the schedule is Mask R-CNN's.
_base_ = [
    '_base_/models/retinanet_fcvit.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x.py',
    '_base_/default_runtime.py',
]
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/fcvit_b12_in1k.pth'

model = dict(
    backbone=dict(arch='b12', init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[128, 320, 512]),
)
