# 12 epochs; 117,266 images with boxes / 32 = 3665 iterations an epoch, 44k in all.
# lr 2e-4 for 8 GPUs x 4 images = 32; 2e-7 at the start of the warm-up. No gradient clipping.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# 8 GPUs x 4 images = 32
auto_scale_lr = dict(enable=False, base_batch_size=32)
