# A trial on a small real data set (docs/trials.md): 300 microscope images of 256 to 360 pixels, up to 131 nuclei each,
# in COCO format under data/nuclei. Crops of 192 pixels; 300 / 2 = 150 iterations an epoch, 2 epochs = 300 iterations.
_base_ = '../mask_rcnn_fcvit_tiny_coco.py'
data_root = 'data/nuclei/'
metainfo = dict(classes=('nucleus',), palette=[(220, 20, 60)])
# The classifier of configs/classification/trials/fcvit_tiny_flowers5.py.
pretrained = 'work_dirs/fcvit_tiny_flowers5/epoch_12.pth'

model = dict(
    backbone=dict(drop_path_rate=0.0, layer_scale_init_value=0.1, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(out_channels=96),
    # Nuclei are 10 to 60 pixels wide: squares of 4 x (4, 8, ..., 64) pixels.
    rpn_head=dict(in_channels=96, feat_channels=96, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96, finest_scale=28),
        bbox_head=dict(in_channels=96, fc_out_channels=256, num_classes=1),
        mask_roi_extractor=dict(out_channels=96, finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=96, conv_out_channels=64, num_classes=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    # Up to 131 nuclei in an image: the usual limit of 100 detections would cut them off.
    test_cfg=dict(rpn=dict(max_per_img=500), rcnn=dict(max_per_img=200)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomCrop', crop_size=(192, 192)),
    dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Nothing is resized, but mmdet needs the scale factor to map predictions back.
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.05), clip_grad=dict(max_norm=10.0, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=2, eta_min=1e-5, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# 1 process x 2 images
auto_scale_lr = dict(base_batch_size=2)
randomness = dict(seed=0)
