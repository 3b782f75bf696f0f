"""Convolutions with kernels computed from the input; common tests of all operations: test_implementations.py."""

import pytest
import torch
import torch.nn.functional as F

from fcvit_mm.ops import dynamic_depthwise_conv2d, inhomogeneous_depthwise_conv2d, use_ops


def maps(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def kernels_of_positions(images, channels, height, width, groups=3, dtype=torch.float64):
    weight = maps(images, groups * 49, height, width, dtype=dtype).detach()
    return maps(images, channels, height, width, dtype=dtype), weight.unflatten(1, (groups, 49)).requires_grad_()


def test_each_image_has_kernels_of_its_own():
    x, weight, bias = maps(2, 4, 9, 8), maps(2, 4, 7, 7), maps(4)
    for one, kernels, out in zip(x, weight, dynamic_depthwise_conv2d(x, weight, bias)):
        torch.testing.assert_close(F.conv2d(one, kernels.unsqueeze(1), bias, padding=3, groups=4), out)
    torch.testing.assert_close(dynamic_depthwise_conv2d(x, weight), dynamic_depthwise_conv2d(x, weight, bias * 0))


@pytest.mark.parametrize('mode', ['auto', 'reference'])
def test_each_position_has_a_kernel_of_its_own(mode):
    x, weight = kernels_of_positions(2, 6, 4, 5)
    with use_ops(mode):
        out = inhomogeneous_depthwise_conv2d(x, weight)
    padded = F.pad(x, (3, 3, 3, 3))
    for b, c, i, j in [(0, 0, 0, 0), (1, 5, 3, 4), (0, 3, 2, 1)]:
        kernel = weight[b, c // 2, :, i, j].view(7, 7)
        torch.testing.assert_close((padded[b, c, i : i + 7, j : j + 7] * kernel).sum(), out[b, c, i, j])


def test_equal_kernels_everywhere_make_an_ordinary_convolution():
    x = maps(2, 6, 10, 7, dtype=torch.float32)
    kernels = torch.randn(6, 1, 7, 7)
    expected = F.conv2d(x, kernels, padding=3, groups=6)
    torch.testing.assert_close(
        dynamic_depthwise_conv2d(x, kernels.view(1, 6, 7, 7).expand(2, -1, -1, -1)), expected, rtol=1e-4, atol=1e-4
    )
    by_position = kernels.view(1, 6, 49, 1, 1).expand(2, -1, -1, 10, 7)
    torch.testing.assert_close(inhomogeneous_depthwise_conv2d(x, by_position), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('needs', [(True, False), (False, True)])
def test_only_requested_gradients_are_computed(needs):
    arguments = [
        argument.detach().requires_grad_(needed) for argument, needed in zip(kernels_of_positions(2, 6, 8, 8), needs)
    ]
    inhomogeneous_depthwise_conv2d(*arguments).sum().backward()
    assert [argument.grad is not None for argument in arguments] == list(needs)


def test_second_derivatives_are_correct():
    """As a gradient penalty needs them, where the gradient of the output itself needs none."""
    x, weight = maps(1, 2, 2, 3).detach(), maps(1, 1, 9, 2, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
        assert torch.autograd.gradgradcheck(inhomogeneous_depthwise_conv2d, (x, weight))
        grad = torch.autograd.grad(inhomogeneous_depthwise_conv2d(x, weight).sum(), x, create_graph=True)[0]
        assert torch.autograd.grad(grad.square().sum(), weight)[0].abs().sum() > 0


def test_feature_map_is_not_unfolded():
    """Autograd saves the map and the kernels for the backward pass, and nothing of 49 times the size of the map."""
    x, weight = kernels_of_positions(1, 48, 16, 16, dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        inhomogeneous_depthwise_conv2d(x, weight)
    assert sum(saved) == x.numel() + weight.numel()


def test_channels_last_is_kept_on_cpu():
    x = maps(2, 6, 9, 9).contiguous(memory_format=torch.channels_last)
    assert dynamic_depthwise_conv2d(x, maps(2, 6, 7, 7)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'shapes, message',
    [
        (
            ((2, 4, 8, 8), (2, 4, 7, 5)),
            r'dynamic_depthwise_conv2d: weight has the shape \(2, 4, 7, 5\), but x of shape \(2, 4, 8, 8\) takes '
            r'\(2, 4, 5, 5\)',
        ),
        (((2, 4, 8, 8), (2, 4, 6, 6)), 'dynamic_depthwise_conv2d: weight has a kernel of 6x6, expected an odd size'),
        (((2, 4, 8, 8), (1, 4, 7, 7)), r'weight has the shape \(1, 4, 7, 7\), .* takes \(2, 4, 7, 7\)'),
        (((2, 4, 8, 8), (2, 4, 7, 7), (5,)), r'bias has the shape \(5,\), .* takes \(4,\)'),
        (((4, 8, 8), (4, 8, 7, 7)), r'x has the shape \(4, 8, 8\), expected four dimensions \(B, C, H, W\)'),
    ],
)
def test_dynamic_refuses_invalid_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        dynamic_depthwise_conv2d(*map(torch.zeros, shapes))


@pytest.mark.parametrize(
    'shapes, message',
    [
        (
            ((2, 4, 8, 8), (2, 3, 49, 8, 8)),
            r'weight has 3 groups in its shape \(2, 3, 49, 8, 8\), .* do not divide the 4 channels of x, of shape '
            r'\(2, 4, 8, 8\)',
        ),
        (((2, 4, 8, 8), (2, 0, 49, 8, 8)), 'weight has 0 groups'),
        (((2, 4, 8, 8), (2, 2, 49, 8, 7)), r'the shape \(2, 2, 49, 8, 7\), .* takes \(2, 2, 49, 8, 8\)'),
        (((2, 4, 8, 8), (2, 98, 8, 8)), r'the shape \(2, 98, 8, 8\), .* takes \(2, G, k\*k, 8, 8\)'),
        (((2, 4, 8, 8), (2, 2, 48, 8, 8)), 'kernels of 48 elements .* expected the square of an odd number'),
        (((2, 4, 8, 8), (2, 2, 36, 8, 8)), 'kernels of 36 elements .* expected the square of an odd number'),
        (((4, 8, 8), (1, 2, 49, 8, 8)), r'x has the shape \(4, 8, 8\), expected four dimensions'),
    ],
)
def test_inhomogeneous_refuses_invalid_shapes(shapes, message):
    with pytest.raises(ValueError, match='inhomogeneous_depthwise_conv2d: .*' + message):
        inhomogeneous_depthwise_conv2d(*map(torch.zeros, shapes))


@pytest.mark.parametrize(
    'operation, shape', [(dynamic_depthwise_conv2d, (1, 4, 3, 3)), (inhomogeneous_depthwise_conv2d, (1, 2, 9, 8, 8))]
)
def test_refuses_mixed_dtypes(operation, shape):
    with pytest.raises(TypeError, match=r'weight is torch\.float64, but x is torch\.float32: convert'):
        operation(torch.zeros(1, 4, 8, 8), torch.zeros(shape).double())
