# The baseline for FCViT-tiny: the same heads, data, schedule and seed, and a backbone from the same classification
# trial.
_base_ = './upernet_fcvit_tiny_camvid.py'
pretrained = 'work_dirs/resnet18_flowers5/epoch_12.pth'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        norm_cfg=dict(type='BN'),
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
