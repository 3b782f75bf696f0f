# 8 GPUs x 128 images = 1024, lr 1e-3; 300 epochs. Evaluation crop 0.875: 256 -> 224.
_base_ = './attnscale_vit_base_24_in1k.py'

model = dict(backbone=dict(methods=('feat_scale',)))
