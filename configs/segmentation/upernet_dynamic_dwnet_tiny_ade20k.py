# 160k iterations, 8 GPUs x 2 images = 16, lr 6e-5.
_base_ = './upernet_dwnet_tiny_ade20k.py'
# A classifier's checkpoint: a converted published file or one that tools/train.py wrote.
pretrained = 'checkpoints/dynamic_dwnet_tiny_in1k.pth'

model = dict(backbone=dict(dynamic='homogeneous', init_cfg=dict(checkpoint=pretrained)))
