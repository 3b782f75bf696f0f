# As its base, with evaluation crop ratio 0.95.
_base_ = './imagenet_bs128_crop90_224.py'

test_pipeline, tta_pipeline = _base_.test_pipeline, _base_.tta_pipeline
# 224 / 0.95 = 235.8, rounded down as timm does
test_pipeline[1].scale = tta_pipeline[1].scale = 235

val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
