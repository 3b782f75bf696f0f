# The published fine-tuning of CaiT: 60 epochs at lr 5e-5, one of warm-up from 1e-6, cosine to 1e-6, weight decay 5e-4.
# 1,281,167 images / 1024 = 1251 iterations an epoch, 75k in all.
_base_ = './adamw_deit_300e.py'

optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=5e-4))

param_scheduler = [
    # 5e-5 x 0.02 = 1e-6
    dict(type='LinearLR', start_factor=0.02, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    # 59 epochs of cosine
    dict(type='CosineAnnealingLR', T_max=59, eta_min=1e-6, by_epoch=True, begin=1, end=60),
]

train_cfg = dict(max_epochs=60)
