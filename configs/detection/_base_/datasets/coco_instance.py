_base_ = 'mmdet::_base_/datasets/coco_instance.py'

# FastDetRandomFlip and ChannelsFirst are faster equivalents of mmdet's transforms (docs/data.md).
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='FastDetRandomFlip', prob=0.5),
    dict(type='ChannelsFirst'),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(pipeline=train_pipeline))
