# 160k iterations, 8 GPUs x 2 images = 16, lr 6e-5. No published figure.
_base_ = [
    '_base_/models/upernet_fcvit.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k_transformer.py',
    '_base_/default_runtime.py',
]
# A classifier's checkpoint: a published file, one of the unmodified network, or one that tools/train.py wrote.
pretrained = 'checkpoints/attnscale_swin_small_in1k.pth'

model = dict(
    # _delete_: FCViT's arguments must not leak into the backbone.
    backbone=dict(
        _delete_=True,
        type='Swin',
        arch='small',
        methods=('attn_scale',),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
