"""The arguments of necks and heads are adapted to the outputs of another backbone."""

import copy

import pytest
from mmengine.config import ConfigDict

from fcvit_mm.apis.rewiring import StockConfigError, channel_mismatches, readers, rewire

RESNET = (256, 512, 1024, 2048)
OURS = (8, 16, 24, 32)


def rewired(model, old=RESNET, new=OURS):
    model = ConfigDict(copy.deepcopy(model))
    rewire(model, old, new)
    return model


@pytest.mark.parametrize(
    'new, channels, levels',
    [
        (OURS, [8, 16, 24, 32], (1, -1)),
        ((None, 16, 24, 32), [16, 24, 32], (0, -1)),
        ((None, None, 24, 32), [24, 32], (0, -1)),
    ],
)
def test_necks_with_start_level(new, channels, levels):
    neck = rewired(dict(neck=dict(type='FPN', in_channels=RESNET, start_level=1, end_level=-1)), new=new).neck
    assert neck.in_channels == channels and (neck.start_level, neck.end_level) == levels


def test_neck_with_end_level():
    neck = dict(type='FPN', in_channels=RESNET, start_level=1, end_level=2)
    neck = rewired(dict(neck=neck), new=(None, 16, 24, None)).neck
    assert neck.in_channels == [16, 24] and (neck.start_level, neck.end_level) == (0, 1)


def test_other_necks():
    reverse = rewired(dict(neck=dict(in_channels=(2048, 1024, 512))), RESNET[1:], OURS[1:])
    assert reverse.neck.in_channels == [32, 24, 16]
    assert rewired(dict(neck=dict(in_channels=2048))).neck.in_channels == 32
    assert rewired(dict(neck=dict(in_channels=2048)), new=(None, None, None, 32)).neck.in_channels == 32
    first = rewired(dict(neck=[dict(in_channels=RESNET), dict(in_channels=256)])).neck
    assert first[0].in_channels == list(OURS) and first[1].in_channels == 256


def test_heads_with_in_index():
    model = dict(
        decode_head=[dict(in_channels=1024, in_index=2), dict(in_channels=2048, in_index=-1)],
        auxiliary_head=dict(in_channels=[512, 2048], in_index=(1, 3), channels=512),
    )
    found = rewired(model)
    assert [head.in_channels for head in found.decode_head] == [24, 32]
    assert found.auxiliary_head == dict(in_channels=[16, 32], in_index=(1, 3), channels=512)
    found = rewired(model, new=(None, *OURS[1:]))
    assert [head.in_index for head in found.decode_head] == [1, 2] and found.auxiliary_head.in_index == [0, 2]


def test_nested_heads():
    """The kernel_update_head of K-Net has 512 channels like an output of ResNet, but reads the first head's output."""
    model = dict(
        decode_head=dict(
            kernel_generate_head=dict(in_channels=2048, in_index=3, channels=512),
            kernel_update_head=[dict(in_channels=512, out_channels=512)],
        )
    )
    head = rewired(model).decode_head
    assert head.kernel_generate_head.in_channels == 32 and head.kernel_update_head[0].in_channels == 512


def test_other_arguments_for_channels():
    head = rewired(dict(decode_head=dict(in_channels=2048, in_index=3, c1_in_channels=256, c1_channels=48))).decode_head
    assert (head.in_channels, head.c1_in_channels, head.c1_channels) == (32, 8, 48)
    roi = dict(
        bbox_roi_extractor=dict(out_channels=2048, featmap_strides=[16]),
        bbox_head=dict(in_channels=2048, fc_out_channels=1024),
    )
    model = rewired(dict(rpn_head=dict(in_channels=2048, feat_channels=2048), roi_head=roi), [2048], [32])
    assert model.rpn_head.in_channels == model.roi_head.bbox_head.in_channels == 32
    assert model.roi_head.bbox_roi_extractor.out_channels == 32 and model.roi_head.bbox_head.fc_out_channels == 1024
    # With a neck, the RoI head reads its output, whose channels do not change.
    model = rewired(dict(neck=dict(in_channels=[2048]), roi_head=roi), [2048], [32])
    assert model.roi_head == roi


def test_strides_of_unused_outputs_are_removed():
    head = dict(in_channels=RESNET, strides=[4, 8, 16, 32])
    head = rewired(dict(panoptic_head=head), new=(None, *OURS[1:])).panoptic_head
    assert head == dict(in_channels=[16, 24, 32], strides=[8, 16, 32])


@pytest.mark.parametrize(
    'model, words',
    [
        (dict(neck=dict(type='FPN', in_channels=[1, 2])), r'model\.neck\.in_channels=\[1, 2\], but .* \[256, 512'),
        (dict(decode_head=dict(in_channels=7)), r'model\.decode_head\.in_channels=7, but'),
        (dict(decode_head=dict(in_channels=512, in_index=3)), r'model\.decode_head\.in_channels=512, but'),
        (dict(neck=dict(type='Feature2Pyramid', embed_dim=7)), r'model\.neck \(Feature2Pyramid\) has no argument'),
        (dict(train_cfg=None), 'the model has no argument in_channels'),
    ],
)
def test_channels_that_match_no_output_are_refused(model, words):
    with pytest.raises(StockConfigError, match=words):
        rewired(model)


def test_parts_that_read_the_backbone():
    heads = dict(rpn_head=dict(a=1), bbox_head=None, backbone=dict(b=1), train_cfg=dict(rpn_head=dict(c=1)))
    assert [name for name, _ in readers(heads)] == ['rpn_head']
    assert [name for name, _ in readers(dict(heads, neck=dict(d=1)))] == ['neck']
    assert list(readers(dict(heads, neck=1.5))) == list(readers(dict(heads, neck=['FPN']))) == []


@pytest.mark.parametrize(
    'head, expected',
    [
        (dict(in_channels=[8, 16, 24, 32], in_index=[0, 1, 2, 3]), []),
        (dict(in_channels=[8, 16, 24, 32], in_index=[3, 2, 1, 0]), [[32, 24, 16, 8]]),
        (dict(in_channels=[32, 24, 16, 8]), []),
        (dict(in_channels=24, in_index=2), []),
        (dict(in_channels=32), []),
        (dict(num_classes=3), []),
        (dict(in_channels=2048), [32]),
        (dict(in_channels=1024, in_index=2), [24]),
        (dict(in_channels=24, in_index=7), [None]),
        (dict(in_channels=[8, 16, 24, 32], in_index=2), [24]),
        (dict(in_channels=[8, 16, 24, 32], in_index='multiple_select'), []),
        (dict(in_channels=24, in_index=['2']), []),
        (dict(in_channels=[256, 512], in_index=[1, 3]), [[16, 32]]),
        (dict(in_channels=32, c1_in_channels=256), [None]),
    ],
)
def test_mismatched_channels(head, expected):
    found = list(channel_mismatches(ConfigDict(decode_head=dict(type='FCNHead', **head)), OURS))
    assert [each.expected for each in found] == expected
    assert all(each.part == 'model.decode_head' and each.value == head[each.key] for each in found)


def test_mismatched_channels_after_a_pooling_neck():
    model = ConfigDict(neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', in_channels=2048))
    assert [(each.part, each.expected) for each in channel_mismatches(model, OURS)] == [('model.head', 32)]
    model.head.in_channels = 32
    assert list(channel_mismatches(model, OURS)) == []
