# ViT-S of 12 layers with AttnScale as a classifier: norm of the class token, one linear layer.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ScaledViT',
        arch='small_12',
        remedies=('attn_scale', ),
        out_type='cls_token',
        drop_path_rate=0.1),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.)),
    # One of the two for each batch, with equal chances: DeiT's switching probability of 0.5.
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]))
