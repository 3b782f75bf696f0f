_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    # _delete_: ResNet's arguments must not leak into the backbone. It makes a pyramid of C/4, C/2, C and C channels of
    # the last map; attention is global at every size.
    backbone=dict(_delete_=True, type='ViT', arch='small_12', methods=('feat_scale',), drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 384]),
)
