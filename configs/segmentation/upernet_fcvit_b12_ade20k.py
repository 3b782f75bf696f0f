# 160k iterations, 8 GPUs x 2 images = 16, lr 6e-5. No published figure: the recipe of this family of backbones.
_base_ = './upernet_fcvit_tiny_ade20k.py'
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/fcvit_b12_in1k.pth'

model = dict(
    backbone=dict(arch='b12', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
