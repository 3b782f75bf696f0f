# 8 GPUs x 128 images = 1024, lr 1e-3; 300 epochs and 10 of cool-down. Evaluation crop 0.95: 235 -> 224.
_base_ = './fcvit_b24_in1k.py'

model = dict(backbone=dict(arch='b48', drop_path_rate=0.2))
