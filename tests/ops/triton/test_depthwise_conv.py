"""The depth-wise convolution's kernels; the common tests of all implementations are in test_implementations.py."""

import pytest
import torch
from kernel_cases import (
    CONTIGUOUS,
    DEVICE,
    LAST,
    assert_close,
    check,
    convolution_inputs,
    launches_kernels,
)
from torch import library

from fcvit_mm import ops
from fcvit_mm.ops.triton import depthwise_conv, depthwise_conv2d, support

reference = ops.depthwise_conv2d.reference


# More than one block of rows or channels, more than one split of the places, widths that are no multiple of a program's
# columns, maps smaller than the kernel. A map that one program could do takes one for each place: others take less.
@launches_kernels
@pytest.mark.parametrize(
    'shape, kernel_size, layout',
    [((3, 5, 3, 13), 3, LAST), ((2, 3, 1, 1), 3, CONTIGUOUS), ((1, 70, 2, 2), 5, LAST), ((1, 3, 3, 3), 7, LAST)],
)
def test_values_and_gradients(shape, kernel_size, layout):
    check(depthwise_conv2d, reference, convolution_inputs(shape, kernel_size, layout=layout))


@launches_kernels
def test_large_kernel_in_half_precision():
    """The rows of the kernel that the map does not reach are skipped, its columns masked: 11x11 on 1x5."""
    check(depthwise_conv2d, reference, convolution_inputs((1, 3, 1, 5), 11, dtype=torch.bfloat16))


@launches_kernels
def test_programs_for_small_grids(monkeypatch):
    """Where a few programs would leave most processors idle, each computes one position."""
    monkeypatch.setattr(depthwise_conv.support, 'num_processors', lambda device: 100)
    assert depthwise_conv.tile(3, 4, 1, 2, 3, 100)['POSITIONS'] == 1
    x, weight, bias = (value.detach() for value in convolution_inputs((1, 4, 2, 3), 3))
    assert_close('output', depthwise_conv2d(x, weight, bias), reference(x, weight, bias).double(), x.dtype)


@launches_kernels
def test_without_bias():
    x, weight, _ = convolution_inputs((1, 4, 3, 5), 3)
    check(
        lambda x, weight: depthwise_conv2d(x, weight, None), lambda x, weight: reference(x, weight, None), (x, weight)
    )


@launches_kernels
def test_strided_map_and_an_expanded_gradient():
    x, weight, bias = convolution_inputs((1, 4, 4, 4), 3)
    x = x.detach()[:, :, ::2, 1::2].requires_grad_()
    out = depthwise_conv2d(x, weight, bias)
    out.sum().backward()
    exact = x.detach().double().requires_grad_()
    expected = reference(exact, weight.double(), bias.double())
    expected.sum().backward()
    assert_close('output', out, expected, x.dtype)
    assert_close('gradient', x.grad, exact.grad, x.dtype)


@launches_kernels
def test_computes_only_the_gradients_that_are_needed():
    x, weight, bias = convolution_inputs((1, 4, 2, 2), 3)
    out = depthwise_conv2d(x, weight.detach(), bias.detach())
    out.sum().backward()
    assert x.grad is not None and weight.grad is None
    out = depthwise_conv2d(x.detach(), weight, bias)
    out.sum().backward()
    assert weight.grad is not None


@launches_kernels
def test_autocast_as_a_convolution():
    """In half precision, the weights in float32."""
    x, weight, bias = convolution_inputs((1, 4, 2, 2), 3)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = reference(x, weight, bias)
        out = depthwise_conv2d(x, weight, bias)
        assert out.dtype == expected.dtype == torch.bfloat16
    assert_close('output', out, expected.double(), out.dtype)
    out.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@launches_kernels
def test_operator_is_well_registered():
    library.opcheck(
        torch.ops.fcvit_mm.depthwise_conv2d.default,
        convolution_inputs((1, 4, 2, 2), 3),
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'),
    )


def test_taps_are_the_weight_channels_last():
    weight = torch.randn(5, 1, 3, 3)
    taps = depthwise_conv.taps_of(weight.half(), torch.float32)
    assert taps.dtype == torch.float32 and taps.shape == (9, 5)
    assert torch.equal(taps, weight.half().float().flatten(1).t())


def test_packed_weight_is_the_same_and_not_copied():
    weight = torch.randn(5, 1, 3, 3)
    packed = depthwise_conv.pack_taps(weight)
    assert packed.shape == weight.shape and torch.equal(packed, weight)
    assert depthwise_conv.taps_of(packed, weight.dtype).data_ptr() == packed.data_ptr()
    assert depthwise_conv.taps_of(weight, weight.dtype).data_ptr() != weight.data_ptr()


@pytest.mark.skipif(support.INTERPRETED, reason='about GPUs: asked outside the interpreter')
@pytest.mark.parametrize(
    'kernel_size, shape, expected',
    [
        (3, (128, 512, 56, 56), dict(ROWS=2, COLS=4, POSITIONS=8, BLOCK_C=64, num_warps=4)),
        (11, (128, 64, 56, 56), dict(ROWS=1, COLS=14, POSITIONS=8, BLOCK_C=64, num_warps=4)),
        (11, (128, 512, 7, 7), dict(ROWS=2, COLS=7, POSITIONS=8, BLOCK_C=64, num_warps=4)),
        (11, (1, 320, 14, 14), dict(ROWS=1, COLS=14, POSITIONS=1, BLOCK_C=64, num_warps=1)),
        (7, (2, 96, 25, 19), dict(ROWS=2, COLS=7, POSITIONS=1, BLOCK_C=64, num_warps=1)),
    ],
)
def test_tiles_fit_the_map(kernel_size, shape, expected):
    """Columns that divide the width, and a program for each processor."""
    batch, channels, height, width = shape
    assert depthwise_conv.tile(kernel_size, channels, batch, height, width, 132) == expected
