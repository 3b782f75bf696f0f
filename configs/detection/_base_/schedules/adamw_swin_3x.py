# 36 epochs with steps after 27 and 33; 117,266 images with boxes / 16 = 7329 iterations an epoch, 264k in all.
# lr 1e-4 for 8 GPUs x 2 images = 16; 1e-7 at the start of the warm-up. No weight decay on norms.
_base_ = './adamw_3x.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)

# 8 GPUs x 2 images = 16
auto_scale_lr = dict(enable=False, base_batch_size=16)
