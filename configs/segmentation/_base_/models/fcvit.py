# Common part of all segmentors with FCViT: everything but neck and heads.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    # Layer scale 1e-6 (the class's default) as published for segmentation.
    backbone=dict(type='FCViT', arch='tiny'),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
