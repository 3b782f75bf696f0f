# 160k iterations, 8 GPUs x 2 images = 16, lr 6e-5.
_base_ = [
    '_base_/models/upernet_dwnet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k.py',
    '_base_/default_runtime.py',
]
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/dwnet_tiny_in1k.pth'

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
