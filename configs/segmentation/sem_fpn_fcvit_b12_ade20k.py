# 40k iterations, 8 GPUs x 4 images = 32, lr 2e-4.
_base_ = './sem_fpn_fcvit_tiny_ade20k.py'
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/fcvit_b12_in1k.pth'

model = dict(
    backbone=dict(arch='b12', init_cfg=dict(checkpoint=pretrained)), neck=dict(in_channels=[64, 128, 320, 512])
)
