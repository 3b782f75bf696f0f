# Swin's schedule for detection (lr 1e-4 for 16 images) with twice the batch: 8 GPUs x 4 images = 32, lr 2e-4, weight
# decay 0.05, but none on one-dimensional parameters (norms, biases, the methods) and position tables.
_base_ = './adamw_1x.py'

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
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
