# 160k iterations, 8 GPUs x 2 images = 16, lr 6e-5.
_base_ = './upernet_dwnet_tiny_ade20k.py'
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/dwnet_base_in1k.pth'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
