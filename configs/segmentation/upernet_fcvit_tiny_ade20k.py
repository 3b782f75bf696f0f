# 160k iterations, 8 GPUs x 2 images = 16, lr 6e-5. No published figure: the recipe of this family of backbones.
_base_ = [
    '_base_/models/upernet_fcvit.py',
    '_base_/datasets/ade20k.py',
    '_base_/default_runtime.py',
    '_base_/schedules/adamw_160k.py',
]
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/fcvit_tiny_in1k.pth'

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
