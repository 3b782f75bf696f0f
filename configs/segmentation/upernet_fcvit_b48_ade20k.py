# 160k iterations, 8 GPUs x 2 images = 16, lr 6e-5. No published figure: the recipe of this family of backbones.
_base_ = './upernet_fcvit_b12_ade20k.py'
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/fcvit_b48_in1k.pth'

model = dict(backbone=dict(arch='b48', init_cfg=dict(checkpoint=pretrained)))
