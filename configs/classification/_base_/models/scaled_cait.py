# CaiT-S24 with AttnScale: as ViT, with CaiT's stochastic depth, which is that of every block.
_base_ = './scaled_vit.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ScaledCaiT',
        arch='s24',
        remedies=('attn_scale', ),
        out_type='cls_token',
        drop_path_rate=0.1))
