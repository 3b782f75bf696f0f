# lr 2e-4 for 8 GPUs x 4 images = 32. 40k x 32 = 1.28M images, 63 epochs. No warm-up.
_base_ = './adamw_160k.py'

optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=None)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000)]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))

# 8 GPUs x 4 images = 32
auto_scale_lr = dict(base_batch_size=32)
