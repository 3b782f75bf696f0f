# 1x: 12 epochs, 8 GPUs x 4 images = 32, lr 2e-4. No published figure.
_base_ = [
    '_base_/models/mask_rcnn_swin.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/adamw_1x_transformer.py',
    '_base_/default_runtime.py',
]
# A classifier's checkpoint: a published file, one of the unmodified network, or one that tools/train.py wrote.
pretrained = 'checkpoints/attnscale_swin_small_in1k.pth'

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
