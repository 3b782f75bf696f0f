# Generated images (tools/make_dataset.py imagenet), for 2 CPU cores: 64x64 pixels, 2 epochs of 1600 / 16 = 100
# iterations. No Mixup, RandAugment or drop path: the schedule is too short for them. Layer scale starts at 0.1, for
# Adam would need hundreds of iterations to raise 1e-5.
_base_ = 'fcvit_tiny_in1k.py'
data_root = 'data/shapes/imagenet'
metainfo = dict(classes=('circle', 'cross', 'square', 'star', 'triangle'))

model = dict(
    backbone=dict(drop_path_rate=0.0, layer_scale_init_value=0.1), head=dict(num_classes=5, topk=(1,)), train_cfg=None
)
data_preprocessor = dict(num_classes=5)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.7, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=64),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=16, num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=50, num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.03, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', T_max=2, eta_min=1e-5, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
# 1 process x 16 images
auto_scale_lr = dict(base_batch_size=16)
randomness = dict(seed=0)
