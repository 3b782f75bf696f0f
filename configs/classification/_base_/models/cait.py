# CaiT-S24 with AttnScale: as ViT, with CaiT's stochastic depth, whose rate is the same for every block.
_base_ = './vit.py'

model = dict(
    backbone=dict(
        _delete_=True, type='CaiT', arch='s24', methods=('attn_scale',), out_type='cls_token', drop_path_rate=0.1
    )
)
