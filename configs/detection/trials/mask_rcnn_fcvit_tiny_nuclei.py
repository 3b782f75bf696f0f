# A trial on a small real data set (docs/trials.md): 300 microscope images, up to 131 nuclei each, under data/nuclei.
# Crops of 192 pixels; 300 / 2 = 150 iterations an epoch, 8 epochs = 1200 iterations.
_base_ = ['../_base_/models/mask_rcnn_fcvit.py', '../_base_/default_runtime.py']
# The classifier of configs/classification/trials/fcvit_tiny_flowers5.py.
pretrained = 'work_dirs/fcvit_tiny_flowers5/epoch_12.pth'

model = dict(
    backbone=dict(
        drop_path_rate=0., layer_scale_init_value=0.1, init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(out_channels=128),
    rpn_head=dict(
        in_channels=128,
        feat_channels=128,
        # Nuclei are 10 to 60 pixels wide.
        anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, finest_scale=28),
        bbox_head=dict(in_channels=128, fc_out_channels=256, num_classes=1),
        mask_roi_extractor=dict(out_channels=128, finest_scale=28),
        mask_head=dict(in_channels=128, conv_out_channels=64, num_convs=2, num_classes=1)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=dict(sampler=dict(num=128, add_gt_as_proposals=True))),
    test_cfg=dict(rpn=dict(max_per_img=500), rcnn=dict(max_per_img=200)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomCrop', crop_size=(192, 192)),
    dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
# Nothing is resized, but predictions are mapped back by this.
test_pipeline.insert(1, dict(type='Resize', scale_factor=1.0, keep_ratio=True))
data_root = 'data/nuclei'
metainfo = dict(classes=('nucleus', ), palette=[(220, 20, 60)])
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=f'{data_root}/annotations/instances_val.json',
    metric=['bbox', 'segm'],
    # Up to 131 nuclei in a picture: the usual limit of 100 detections would cut them off.
    proposal_nums=(1, 10, 200))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., flat_decay_mult=0.),
    clip_grad=dict(max_norm=10., norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=8, milestones=[6], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=2)
randomness = dict(seed=0)
