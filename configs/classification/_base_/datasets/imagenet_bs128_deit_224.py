# DeiT's augmentation: as its base, every image three times an epoch in different versions (a third of the images
# each), evaluation crop ratio 0.875.
_base_ = './imagenet_bs128_crop90_224.py'

test_pipeline, tta_pipeline = _base_.test_pipeline, _base_.tta_pipeline
# 224 / 0.875 = 256
test_pipeline[1].scale = tta_pipeline[1].scale = 256

train_dataloader = dict(sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
