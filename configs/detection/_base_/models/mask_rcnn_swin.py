_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    # _delete_: ResNet's arguments must not leak into the backbone. Drop path as for Swin's detectors.
    backbone=dict(_delete_=True, type='Swin', arch='small', methods=('attn_scale',), drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
