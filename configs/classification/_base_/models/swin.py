# Swin-S with AttnScale: norm of the last stage, mean over height and width, one linear layer.
_base_ = './vit.py'

model = dict(
    backbone=dict(
        _delete_=True, type='Swin', arch='small', methods=('attn_scale',), out_indices=(3,), drop_path_rate=0.3
    ),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(in_channels=768),
)
