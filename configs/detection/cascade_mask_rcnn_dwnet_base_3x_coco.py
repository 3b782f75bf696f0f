# 3x, multi-scale: 36 epochs, 8 GPUs x 2 images = 16, lr 1e-4, short side 480 to 800.
_base_ = './cascade_mask_rcnn_dwnet_tiny_3x_coco.py'
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/dwnet_base_in1k.pth'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
