# A classifier with a network of another package, on folders of images; 1 process x 4 images = 4.
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['fcvit_mm', 'example_net'], allow_failed_imports=False)
data_preprocessor = dict(num_classes=5, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ExampleNet', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=20, loss=dict(type='CrossEntropyLoss')),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
data = dict(type='CustomDataset', data_root='data', pipeline=pipeline)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(data, data_prefix='train'),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(data, data_prefix='val'),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg, val_cfg, test_cfg = dict(by_epoch=True, max_epochs=1), dict(), dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3),
    constructor='BackboneLayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
auto_scale_lr = dict(base_batch_size=4)
