"""The convolution; the common tests of all operations are in test_implementations.py."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fcvit_mm.ops import conv2d, native
from fcvit_mm.ops.conv import _product, _space_to_depth

X = torch.ones(2, 16, 4, 4)


@pytest.mark.parametrize('stride, padding, groups', [(1, 0, 1), (2, 1, 4), ((2, 1), (0, 1), 16)])
def test_stride_padding_and_groups(stride, padding, groups):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 16, 7, 5), torch.randn(16, 16 // groups, 3, 3), torch.randn(16)
    expected = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    torch.testing.assert_close(conv2d(x, weight, bias, stride, padding, groups), expected)


@pytest.mark.parametrize(
    'args, message',
    [
        (
            (torch.ones(8, 12, 1, 1),),
            r'conv2d: weight has the shape \(8, 12, 1, 1\), but x of shape \(2, 16, 4, 4\) takes \(8, 16, 1, 1\)',
        ),
        ((torch.ones(8, 16, 1, 1), torch.ones(9)), r'bias has the shape \(9,\).*\(8,\)'),
        ((torch.ones(8, 16, 1, 1), None, 1, 0, 4), r'takes \(8, 4, 1, 1\)'),
    ],
)
def test_refuses_invalid_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        conv2d(X, *args)


@pytest.mark.parametrize(
    'size, stride, padding, side', [(7, 4, 3, (33, 40)), (3, 2, 1, (15, 8)), (5, 4, 0, (21, 9)), (7, 4, (2, 2), (7, 5))]
)
def test_space_to_depth_agrees_with_torch(size, stride, padding, side):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *side, dtype=torch.double, requires_grad=True)
    weight = torch.randn(4, 3, size, size, dtype=torch.double, requires_grad=True)
    bias = torch.randn(4, dtype=torch.double)
    out, expected = _space_to_depth(x, weight, bias, stride, padding), F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), (x, weight)), torch.autograd.grad(expected.square().sum(), (x, weight))
    )


def in_channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels for this torch and processor')
@pytest.mark.parametrize(
    'kernel, stride, padding, sides',
    [
        ((3, 3), 2, 1, (14, 14)),
        ((3, 3), 1, 0, (3, 3)),
        ((2, 5), (2, 1), (0, 3), (7, 4)),
        ((3, 3), (1, 3), (2, 1), (1, 9)),
    ],
)
def test_im2col_of_a_large_weight(kernel, stride, padding, sides):
    torch.manual_seed(0)
    weight, bias = in_channels_last(96, 512, *kernel) / 50, torch.randn(96)
    x = in_channels_last(2, 512, *sides)
    assert conv2d.choose(x, weight, bias, stride, padding).name == 'im2col'
    for shift in (bias, None):
        expected = F.conv2d(x.double(), weight.double(), shift if shift is None else shift.double(), stride, padding)
        have = conv2d(x, weight, shift, stride, padding)
        torch.testing.assert_close(have.double(), expected, rtol=1e-5, atol=1e-5)
        assert have.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels for this torch and processor')
def test_im2col_is_not_used_if_slower_or_unsupported():
    x, weight = in_channels_last(1, 512, 14, 14), in_channels_last(512, 512, 3, 3)
    assert conv2d.choose(x, weight, None, 2, 1).name == 'im2col'
    for other in (
        (in_channels_last(1, 512, 42, 42), weight, None, 2, 1),
        (x, weight.contiguous(), None, 2, 1),
        (x, weight[:32].contiguous(memory_format=torch.channels_last), None, 2, 1),
        (x, weight, None, 2, 'valid'),
        (x, weight, None, 2, 1, 1, 2),
        (x, in_channels_last(1024, 256, 3, 3), None, 2, 1, 2),
        (x, weight.clone().requires_grad_(), None, 2, 1),
        (x[:0], weight, None, 2, 1),
    ):
        assert conv2d.choose(*other).name != 'im2col'
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        conv2d(in_channels_last(1, 512, 1, 1), weight, None, 1, 0)


def test_product_agrees_with_torch_and_keeps_channels_last():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 3, 5).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(8, 16, 1, 1), torch.randn(8)
    out = _product(x, weight, bias)
    torch.testing.assert_close(out, F.conv2d(x, weight, bias))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'shape, kernel, settings, expected',
    [
        ((2, 3, 32, 32), (8, 3, 7, 7), (4, 3), 'space_to_depth'),
        ((2, 3, 32, 32), (8, 3, 7, 7), ((4, 4), (3, 3), 1, (1, 1)), 'space_to_depth'),
        ((2, 3, 32, 32), (8, 3, 7, 7), (4, (3, 2)), 'reference'),
        ((2, 3, 32, 32), (8, 3, 7, 7), ((4, 2), 3), 'reference'),
        ((2, 3, 32, 32), (8, 3, 7, 7), (4, 3, 1, 2), 'reference'),
        ((2, 3, 32, 32), (8, 3, 7, 7), (4, 'valid'), 'reference'),
        ((2, 3, 32, 32), (8, 3, 2, 2), (2, 0), 'reference'),
        ((2, 3, 1, 32), (8, 3, 7, 7), (4, 2), 'reference'),
        ((2, 16, 32, 32), (8, 16, 7, 7), (4, 3), 'reference'),
        ((2, 16, 8, 8), (8, 16, 1, 1), (), 'product'),
        ((2, 16, 8, 8), (8, 16, 1, 1), ((1, 1), (0, 0)), 'product'),
        ((2, 16, 8, 8), (8, 16, 1, 1), (2,), 'reference'),
        ((2, 16, 8, 8), (8, 16, 1, 1), (1, 1), 'reference'),
        ((2, 16, 8, 8), (8, 4, 1, 1), (1, 0, 4), 'reference'),
    ],
)
def test_implementation_chosen_on_a_gpu(shape, kernel, settings, expected):
    """Tested with fake tensors, which need no GPU."""
    x = torch.empty(shape, device='meta', dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight = torch.empty(kernel, device='meta', dtype=torch.bfloat16)
    with FakeTensorMode() as mode:
        # torch.empty(device='cuda') would initialize CUDA with torch 2.1, here too.
        x, weight = (FakeTensor(mode, each, torch.device('cuda:0')) for each in (x, weight))
        assert conv2d.choose(x, weight, None, *settings).name == expected
