# A trial on a small real data set (docs/trials.md): 367 street scenes of 320x240, 11 classes, in ADE20K's layout under
# data/camvid. Crops of 160 pixels; 250 iterations x 8 images = 5.4 epochs.
_base_ = '../upernet_fcvit_tiny_ade20k.py'
data_root = 'data/camvid'
metainfo = dict(
    classes=(
        'sky',
        'building',
        'pole',
        'road',
        'pavement',
        'tree',
        'signsymbol',
        'fence',
        'car',
        'pedestrian',
        'bicyclist',
    ),
    palette=[
        [128, 128, 128],
        [128, 0, 0],
        [192, 192, 128],
        [128, 64, 128],
        [60, 40, 222],
        [128, 128, 0],
        [192, 128, 128],
        [64, 64, 128],
        [64, 0, 128],
        [64, 64, 0],
        [0, 128, 192],
    ],
)
# The classifier of configs/classification/trials/fcvit_tiny_flowers5.py.
pretrained = 'work_dirs/fcvit_tiny_flowers5/epoch_12.pth'

crop_size = (160, 160)
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(drop_path_rate=0.0, layer_scale_init_value=0.1, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(channels=96, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(channels=64, num_classes=11, norm_cfg=norm_cfg),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(320, 240), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(type='BaseSegDataset', reduce_zero_label=True, data_root=data_root, metainfo=metainfo)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = dict(
    num_workers=1,
    dataset=dict(
        **dataset, data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'), pipeline=test_pipeline
    ),
)

optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=25),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=25, end=250),
]
train_cfg = dict(max_iters=250, val_interval=125)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=125, max_keep_ckpts=1))
# 1 process x 8 images
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
