# FCViT-tiny as a classifier: norm of the last stage, mean over height and width, one linear layer.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='FCViT', arch='tiny', out_indices=(3,), drop_path_rate=0.1, layer_scale_init_value=1e-5),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=320,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    # One of the two for each batch, with equal probability: the published switching probability of 0.5.
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
