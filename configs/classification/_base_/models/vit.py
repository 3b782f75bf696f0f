# ViT-S of 12 layers with AttnScale as a classifier: norm of the class token, one linear layer. As in its
# base, Mixup and CutMix have equal probability, which DeiT uses, too.
_base_ = './fcvit.py'

model = dict(
    backbone=dict(
        _delete_=True, type='ViT', arch='small_12', methods=('attn_scale',), out_type='cls_token', drop_path_rate=0.1
    ),
    neck=None,
    head=dict(in_channels=384),
)
