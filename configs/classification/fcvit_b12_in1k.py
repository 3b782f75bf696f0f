# 8 GPUs x 128 images = 1024, lr 1e-3; 300 epochs and 10 of cool-down. Evaluation crop 0.9: 248 -> 224.
_base_ = './fcvit_tiny_in1k.py'

model = dict(backbone=dict(arch='b12'), head=dict(in_channels=512))
