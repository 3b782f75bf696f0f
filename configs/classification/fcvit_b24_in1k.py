# 8 GPUs x 128 images = 1024, lr 1e-3; 300 epochs and 10 of cool-down. Evaluation crop 0.95: 235 -> 224.
_base_ = [
    '_base_/models/fcvit.py',
    '_base_/datasets/imagenet_bs128_crop95_224.py',
    '_base_/schedules/adamw_310e.py',
    '_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='b24'), head=dict(in_channels=512))
