# DWNet-tiny as a classifier: LayerNorm of the last stage, mean over height and width, one linear layer.
_base_ = './fcvit.py'

model = dict(
    backbone=dict(
        _delete_=True, type='DWNet', arch='tiny', out_indices=(3,), norm_cfg=dict(type='LN'), drop_path_rate=0.2
    ),
    head=dict(in_channels=768),
)
