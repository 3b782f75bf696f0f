# 3x, multi-scale: 36 epochs, 8 GPUs x 2 images = 16, lr 1e-4, short side 480 to 800.
_base_ = [
    '_base_/models/cascade_mask_rcnn_dwnet.py',
    '_base_/datasets/coco_instance_ms.py',
    '_base_/schedules/adamw_swin_3x.py',
    '_base_/default_runtime.py',
]
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/dwnet_tiny_in1k.pth'

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
train_dataloader = dict(batch_size=2)
