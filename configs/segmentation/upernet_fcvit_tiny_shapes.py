# Generated images (tools/make_dataset.py ade20k), for 2 CPU cores: 128x128 pixels, narrow heads, 300 iterations of
# 8 images. The backbone is the whole FCViT-tiny.
_base_ = 'upernet_fcvit_tiny_ade20k.py'
data_root = 'data/shapes/ade20k'
metainfo = dict(
    classes=('background', 'circle', 'cross', 'square', 'star', 'triangle'),
    palette=[[60, 60, 60], [230, 60, 60], [60, 180, 75], [67, 99, 216], [255, 200, 25], [200, 70, 220]],
)
pretrained = 'work_dirs/fcvit_tiny_shapes/epoch_2.pth'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(drop_path_rate=0.0, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(channels=64, num_classes=6, norm_cfg=norm_cfg),
    auxiliary_head=dict(channels=32, num_classes=6, norm_cfg=norm_cfg),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', scale=(128, 128)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128)),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(type='BaseSegDataset', reduce_zero_label=True, data_root=data_root, metainfo=metainfo)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=300),
]
train_cfg = dict(max_iters=300, val_interval=300)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=300, max_keep_ckpts=1))
# 1 process x 8 images
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
