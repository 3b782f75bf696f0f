_base_ = './upernet_fcvit.py'

model = dict(
    backbone=dict(
        _delete_=True, type='DWNet', arch='tiny', norm_cfg=dict(type='SyncBN', requires_grad=True), drop_path_rate=0.3
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
