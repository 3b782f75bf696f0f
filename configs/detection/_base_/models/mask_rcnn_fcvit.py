_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    # _delete_: ResNet's arguments must not leak into FCViT. Layer scale 1e-6 (the class's default) as published for
    # detection. The published drop path of detectors is not known: it is the variant's ImageNet rate here.
    backbone=dict(_delete_=True, type='FCViT', arch='tiny', drop_path_rate=0.1),
    neck=dict(in_channels=[32, 64, 160, 320]),
)
