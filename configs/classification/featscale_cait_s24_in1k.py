# Fine-tuning of an unmodified CaiT: 8 GPUs x 128 images = 1024, lr 5e-5; 60 epochs. Evaluation crop 0.875: 256 -> 224.
_base_ = './attnscale_cait_s24_in1k.py'

model = dict(backbone=dict(methods=('feat_scale',)))
