# The baseline for FCViT-tiny: the same data, schedule and seed.
_base_ = './fcvit_tiny_flowers5.py'

model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18, out_indices=(3,)), head=dict(in_channels=512))
