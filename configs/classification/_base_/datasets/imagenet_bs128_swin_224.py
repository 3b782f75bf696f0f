# Swin's augmentation and evaluation crop (256 -> 224, a ratio of 0.875), 128 images per GPU.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

# The types Fast... and ChannelsFirst are faster equivalents of mmpretrain's transforms (docs/data.md).
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='FastRandomResizedCrop', scale=224, interpolation='bicubic'),
    dict(type='FastRandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='FastRandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in _base_.bgr_mean], interpolation='bicubic'),
    ),
    dict(
        type='FastRandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.bgr_mean,
        fill_std=_base_.bgr_std,
    ),
    dict(type='ChannelsFirst'),
    dict(type='PackInputs'),
]

# For `tools/test.py --tta`: the mean score of the image and its mirror image.
tta_model = dict(type='AverageClsScoreTTA')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
