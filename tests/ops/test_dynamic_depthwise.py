"""Convolutions whose kernels are computed from the input: fast forms against definitions, definitions against loops."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.utils import digit_version

from fcvit_mm.ops import use_ops
from fcvit_mm.ops.dynamic_depthwise import dynamic_depthwise_conv2d, inhomogeneous_depthwise_conv2d

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))]
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
SHAPES = [(3, 12, 14, 14), (1, 12, 9, 11), (2, 6, 5, 3), (1, 6, 1, 1), (0, 6, 8, 8)]


def maps(shape, dtype, layout, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
    return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def dynamic_arguments(shape, dtype, layout, device):
    x = maps(shape, dtype, layout, device)
    weight = maps((*shape[:2], 7, 7), dtype, 'contiguous', device)
    return x, weight, torch.randn(shape[1], dtype=torch.float64).to(device, dtype).requires_grad_()


def inhomogeneous_arguments(shape, dtype, layout, device):
    images, channels, height, width = shape
    weight = maps((images, 3 * 49, height, width), dtype, layout, device)
    return maps(shape, dtype, layout, device), weight.detach().unflatten(1, (3, 49)).requires_grad_()


OPERATIONS = {dynamic_depthwise_conv2d: dynamic_arguments, inhomogeneous_depthwise_conv2d: inhomogeneous_arguments}


def values_and_gradients(operation, arguments, mode):
    with use_ops(mode):
        output = operation(*arguments)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=torch.float64).view(output.shape)
    return [output, *torch.autograd.grad((output.double() * weights).sum(), arguments)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('operation', OPERATIONS, ids=lambda operation: operation.__name__)
def test_fast_forms_are_the_definition(operation, shape, dtype, layout, device):
    if dtype == torch.float16 and device == 'cpu' and digit_version(torch.__version__) < digit_version('2.4'):
        pytest.skip('torch before 2.4 convolves no float16 on CPU')
    arguments = OPERATIONS[operation](shape, dtype, layout, device)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    expected = values_and_gradients(operation, exact, 'plain')
    for mode in ('auto', 'plain'):
        for actual, value, name in zip(
            values_and_gradients(operation, arguments, mode), expected, ('output', 'x', 'weight', 'bias')
        ):
            assert actual.shape == value.shape and actual.dtype == dtype
            scale = value.abs().max().item() if value.numel() else 0
            torch.testing.assert_close(
                actual.double(),
                value,
                rtol=0,
                atol=DTYPES[dtype] * max(scale, 1),
                msg=lambda text, mode=mode, name=name: f'{mode}, {name}: {text}',
            )


def test_each_image_has_kernels_of_its_own():
    x, weight, bias = dynamic_arguments((2, 4, 9, 8), torch.float64, 'contiguous', 'cpu')
    for one, kernels, out in zip(x, weight, dynamic_depthwise_conv2d(x, weight, bias)):
        torch.testing.assert_close(F.conv2d(one, kernels.unsqueeze(1), bias, padding=3, groups=4), out)
    torch.testing.assert_close(dynamic_depthwise_conv2d(x, weight), dynamic_depthwise_conv2d(x, weight, bias * 0))


@pytest.mark.parametrize('mode', ['auto', 'plain'])
def test_each_position_has_a_kernel_of_its_own(mode):
    x, weight = inhomogeneous_arguments((2, 6, 4, 5), torch.float64, 'contiguous', 'cpu')
    with use_ops(mode):
        out = inhomogeneous_depthwise_conv2d(x, weight)
    padded = F.pad(x, (3, 3, 3, 3))
    for b, c, i, j in [(0, 0, 0, 0), (1, 5, 3, 4), (0, 3, 2, 1)]:
        kernel = weight[b, c // 2, :, i, j].view(7, 7)
        torch.testing.assert_close((padded[b, c, i : i + 7, j : j + 7] * kernel).sum(), out[b, c, i, j])


def test_equal_kernels_everywhere_make_an_ordinary_convolution():
    x = maps((2, 6, 10, 7), torch.float32, 'contiguous', 'cpu')
    kernels = torch.randn(6, 1, 7, 7)
    expected = F.conv2d(x, kernels, padding=3, groups=6)
    torch.testing.assert_close(
        dynamic_depthwise_conv2d(x, kernels.view(1, 6, 7, 7).expand(2, -1, -1, -1)), expected, rtol=1e-4, atol=1e-4
    )
    by_position = kernels.view(1, 6, 49, 1, 1).expand(2, -1, -1, 10, 7)
    torch.testing.assert_close(inhomogeneous_depthwise_conv2d(x, by_position), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('needs', [(True, False), (False, True)])
def test_only_the_gradients_that_are_asked_for(needs):
    arguments = [
        argument.detach().requires_grad_(needed)
        for argument, needed in zip(inhomogeneous_arguments((2, 6, 8, 8), torch.float32, 'contiguous', 'cpu'), needs)
    ]
    inhomogeneous_depthwise_conv2d(*arguments).sum().backward()
    assert [argument.grad is not None for argument in arguments] == list(needs)


def test_the_map_is_not_unfolded():
    """What autograd keeps for the backward pass: the map and the kernels, nothing of 49 times the map."""
    x, weight = inhomogeneous_arguments((1, 48, 16, 16), torch.float32, 'contiguous', 'cpu')
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        inhomogeneous_depthwise_conv2d(x, weight)
    assert sum(saved) == x.numel() + weight.numel()


def test_channels_last_stays_on_cpu():
    arguments = dynamic_arguments((2, 6, 9, 9), torch.float32, 'channels_last', 'cpu')
    assert dynamic_depthwise_conv2d(*arguments).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('operation', OPERATIONS, ids=lambda operation: operation.__name__)
def test_traces_to_standard_operations(operation):
    arguments = [
        argument.detach() for argument in OPERATIONS[operation]((2, 6, 9, 8), torch.float32, 'channels_last', 'cpu')
    ]
    traced = torch.jit.trace(lambda *given: operation(*given), arguments)
    assert 'PythonOp' not in str(traced.graph)
    # Other numbers of images and sizes, too.
    for shape in ((2, 6, 9, 8), (3, 6, 5, 12), (1, 6, 1, 1)):
        arguments = [argument.detach() for argument in OPERATIONS[operation](shape, torch.float32, 'contiguous', 'cpu')]
        torch.testing.assert_close(traced(*arguments), operation(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'shapes, words',
    [
        (((2, 4, 8, 8), (2, 4, 7, 5)), ['(2, 4, 8, 8)', '(2, 4, 7, 5)', '(B, C, k, k)']),
        (((2, 4, 8, 8), (2, 4, 6, 6)), ['(2, 4, 6, 6)', 'odd k']),
        (((2, 4, 8, 8), (1, 4, 7, 7)), ['(2, 4, 8, 8)', '(1, 4, 7, 7)']),
        (((2, 4, 8, 8), (2, 4, 7, 7), (5,)), ['(2, 4, 8, 8)', 'bias (5,)', '4 channels']),
        (((4, 8, 8), (4, 8, 7, 7)), ['x (4, 8, 8)', '(B, C, H, W)']),
    ],
)
def test_dynamic_refuses(shapes, words):
    with pytest.raises(ValueError) as caught:
        dynamic_depthwise_conv2d(*map(torch.zeros, shapes))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    'shapes, words',
    [
        (((2, 4, 8, 8), (2, 3, 49, 8, 8)), ['(2, 4, 8, 8)', '(2, 3, 49, 8, 8)', 'C a multiple of G']),
        (((2, 4, 8, 8), (2, 2, 49, 8, 7)), ['(2, 4, 8, 8)', '(2, 2, 49, 8, 7)']),
        (((2, 4, 8, 8), (2, 98, 8, 8)), ['(2, 98, 8, 8)', '(B, G, k*k, H, W)']),
        (((2, 4, 8, 8), (2, 2, 48, 8, 8)), ['kernels of 48 values', 'square of an odd number']),
        (((2, 4, 8, 8), (2, 2, 36, 8, 8)), ['kernels of 36 values', 'square of an odd number']),
        (((4, 8, 8), (1, 2, 49, 8, 8)), ['x (4, 8, 8)', '(B, C, H, W)']),
    ],
)
def test_inhomogeneous_refuses(shapes, words):
    with pytest.raises(ValueError) as caught:
        inhomogeneous_depthwise_conv2d(*map(torch.zeros, shapes))
    assert all(word in str(caught.value) for word in words)


def test_inhomogeneous_refuses_two_types():
    with pytest.raises(TypeError, match='x of torch.float32 on cpu and weight of torch.float64 on cpu'):
        inhomogeneous_depthwise_conv2d(torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 9, 8, 8).double())
