# The published augmentation, 128 images per GPU, evaluation crop ratio 0.9.
# RandAugment `rand-m9-mstd0.5-inc1`, flips, random erasing (pixel mode, one area) and normalization are timm's.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs128_poolformer_small_224.py'

bgr_mean = [103.53, 116.28, 123.675]
bgr_std = [57.375, 57.12, 58.395]

# The types Fast... and ChannelsFirst are faster equivalents of mmpretrain's transforms (docs/data.md).
train_pipeline = [
    dict(type='LoadImageFromFile'),
    # The published training chooses the interpolation of each image at random.
    dict(
        type='FastRandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        interpolation=('bilinear', 'bicubic'),
    ),
    dict(type='FastRandomFlip', prob=0.5, direction='horizontal'),
    # timm also chooses the interpolation of these at random; mmpretrain uses one for all.
    dict(
        type='FastRandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in bgr_mean], interpolation='bicubic'),
    ),
    dict(
        type='FastRandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type='ChannelsFirst'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # 224 / 0.9 = 248.9, rounded down as timm does
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
# For `tools/test.py --tta`: the mean score of the image and its mirror image.
tta_model = dict(type='AverageClsScoreTTA')
tta_pipeline = test_pipeline[:-1] + [
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    )
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=128, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
