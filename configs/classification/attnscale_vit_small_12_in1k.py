# 8 GPUs x 128 images = 1024, lr 1e-3; 300 epochs. Evaluation crop 0.875: 256 -> 224.
_base_ = [
    '_base_/models/vit.py',
    '_base_/datasets/imagenet_bs128_deit_224.py',
    '_base_/schedules/adamw_deit_300e.py',
    '_base_/default_runtime.py',
]
