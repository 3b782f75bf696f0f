_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    # _delete_: ResNet's arguments must not leak into FCViT. RetinaNet starts at stride 8; the unused first stage's
    # norm would get no gradient, so the backbone returns three maps and the neck starts at the first of them.
    backbone=dict(_delete_=True, type='FCViT', arch='tiny', out_indices=(1, 2, 3), drop_path_rate=0.1),
    neck=dict(in_channels=[64, 160, 320], start_level=0),
)
