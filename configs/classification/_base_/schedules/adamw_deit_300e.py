# DeiT's: 5 epochs of warm-up from 1e-6, cosine to 1e-5 at epoch 300.
# 1,281,167 images / 1024 = 1251 iterations an epoch, 375k in all.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    # All one-dimensional parameters, including those of the methods, and position tables.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            'cls_token': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
        },
    ),
)

param_scheduler = [
    # 1e-3 x 1e-3 = 1e-6
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # 295 epochs of cosine
    dict(type='CosineAnnealingLR', T_max=295, eta_min=1e-5, by_epoch=True, begin=5, end=300),
]

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# 8 GPUs x 128 images = 1024
auto_scale_lr = dict(enable=False, base_batch_size=1024)
