# The baseline for FCViT-tiny: the same heads, data, schedule and seed, and a backbone from the same classification
# trial.
_base_ = './mask_rcnn_fcvit_tiny_nuclei.py'
pretrained = 'work_dirs/resnet18_flowers5/epoch_12.pth'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
