"""The kernels that a pass would launch on a GPU, recorded on a machine without one."""

from collections import Counter

import pytest
import torch

import fcvit_mm
from fcvit_mm.ops import triton

pytestmark = pytest.mark.skipif(not triton.available(), reason='needs Triton 3.3 and torch 2.5')
CHANNELS = (16, 32, 64, 96)
BLOCKS = 5


@pytest.fixture
def record(load):
    """Return a function that records the kernels of a pass of a small FCViT over 2 images of 64x96."""

    def launches(backward=False, layout=torch.channels_last):
        with torch.device('meta'):
            model = fcvit_mm.FCViT(dict(depths=(1, 2, 1, 1), channels=CHANNELS, mlp_ratios=(4, 4, 4, 4)))
        images = torch.empty(2, 3, 64, 96, device='meta', dtype=torch.bfloat16).contiguous(memory_format=layout)
        return load('launches').record(model, images, processors=132, backward=backward)

    return launches


def copied_maps(launches):
    return [each.shape for each in launches if each.copies and len(each.shape) == 4 and each.shape[0] == 2]


@pytest.mark.parametrize('backward', [False, True])
def test_blocks_do_not_change_the_memory_layout(record, backward):
    """Neither forward nor backward. With NCHW images, only the input of the stem and the outputs are copied."""
    assert copied_maps(record(backward)) == []
    outputs = [(2, channels, 16 >> stage, 24 >> stage) for stage, channels in enumerate(CHANNELS)]
    assert copied_maps(record(backward, torch.contiguous_format)) == [(2, 3, 64, 96), *outputs]


def test_kernels_of_a_block(record):
    counts = Counter(each.name for each in record() if each.kernel is not None)
    norms = 2 * BLOCKS + len(CHANNELS)  # plus one for each output
    assert counts == {
        'group_norm.statistics': norms,
        'group_norm.normalize': norms,
        'global_context.similarity': 2 * BLOCKS,
        'global_context.apply': 2 * BLOCKS,
        'depthwise_conv.depthwise': 3 * BLOCKS,
        'add_scaled.add_scaled': BLOCKS,
    }


def test_bytes_and_multiply_adds_follow_from_the_shapes(record):
    launches = record()
    values = 2 * CHANNELS[0] * 16 * 24
    large = next(each for each in launches if each.constants.get('KERNEL') == 11)
    assert large.shape == (2, CHANNELS[0], 16, 24)
    assert large.bytes == 2 * (2 * values + CHANNELS[0] * (11 * 11 + 1))  # the map is read and written; weights, bias
    expand = next(each for each in launches if each.name == 'addmm' and each.shape == (2 * 16 * 24, 4 * CHANNELS[0]))
    assert expand.multiply_adds == 4 * CHANNELS[0] * values
    assert expand.bytes == 2 * (5 * values + 4 * CHANNELS[0] * (CHANNELS[0] + 1))


def test_recording_leaves_no_changes(record):
    record()
    assert not torch.empty(1, device='meta').is_cuda
    assert not triton.applies(torch.empty(1, 1, 1, 1, device='meta'))
