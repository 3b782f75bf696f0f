# 40k iterations, 8 GPUs x 4 images = 32, lr 2e-4.
_base_ = [
    '_base_/models/sem_fpn_fcvit.py',
    '_base_/datasets/ade20k_multiple32.py',
    '_base_/default_runtime.py',
    '_base_/schedules/adamw_40k.py',
]
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/fcvit_tiny_in1k.pth'

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
