# Fine-tuning of an unmodified CaiT: 8 GPUs x 128 images = 1024, lr 5e-5; 60 epochs. Evaluation crop 0.875: 256 -> 224.
_base_ = [
    '_base_/models/cait.py',
    '_base_/datasets/imagenet_bs128_deit_224.py',
    '_base_/schedules/adamw_finetune_60e.py',
    '_base_/default_runtime.py',
]
# An unmodified CaiT-S24, as published: the parameters that it lacks start as the identity.
pretrained = 'checkpoints/cait_s24_in1k.pth'

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
