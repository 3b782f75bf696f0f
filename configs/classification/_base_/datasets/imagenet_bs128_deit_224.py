# DeiT's augmentation: as its base, every picture three times an epoch in different versions (a third of the pictures
# each), evaluation crop ratio 0.875.
_base_ = './imagenet_bs128_crop90_224.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    # 224 / 0.875 = 256
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
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

train_dataloader = dict(sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
