# As its base, with evaluation crop ratio 0.95.
_base_ = './imagenet_bs128_crop90_224.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    # 224 / 0.95 = 235.8, rounded down as timm does
    dict(type='ResizeEdge', scale=235, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
tta_pipeline = test_pipeline[:-1] + [
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
            [dict(type='PackInputs')],
        ])
]

val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
