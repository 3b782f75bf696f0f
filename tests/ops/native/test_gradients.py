"""The compiled CPU kernels in training, compared with the references in float64."""

import itertools

import pytest
import torch
from operations import counts_flops
from torch import library

from fcvit_mm import ops
from fcvit_mm.ops import native
from fcvit_mm.ops.native import gradients

pytestmark = pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels for this torch and processor')

MIXERS = [ops.channel_mixer, ops.bottleneck]
WITH_GRADIENTS = [*MIXERS, ops.add_global_context, ops.depthwise_conv2d]


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def example(op, *shape: int):
    """Arguments of a call."""
    torch.manual_seed(0)
    args = [*op.example(channels_last(*shape))]
    if op is ops.depthwise_conv2d:
        args[1:] = [torch.randn(shape[1], 1, 5, 5) / 5, torch.randn(shape[1])]
    return args


def leaves(args, dtype=torch.float32):
    return [arg.detach().to(dtype).requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in args]


def tensors(args):
    return [arg for arg in args if isinstance(arg, torch.Tensor)]


def assert_agrees(op, args) -> None:
    """Compare the output and the gradients with those of the reference."""
    results = []
    for function, given in ((op, leaves(args)), (op.reference, leaves(args, torch.double))):
        output = function(*given)
        slope = torch.linspace(-1, 1, output.numel(), dtype=torch.double).view(output.shape)
        results.append([output, *torch.autograd.grad(output, tensors(given), slope.to(output.dtype))])
    assert op.choose(*leaves(args)).name == 'native'
    for place, (have, want) in enumerate(zip(*results)):
        scale = want.abs().max().item() if want.numel() else 0
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=1e-5 * max(scale, 1), msg=f'result {place}')


@pytest.mark.parametrize('op', MIXERS)
@pytest.mark.parametrize(
    'shape', [(1, 1, 1, 1), (2, 5, 1, 7), (1, 8, 2, 1), (3, 13, 5, 4), (1, 24, 9, 16), (2, 17, 6, 3), (0, 8, 4, 4)]
)
def test_any_size(op, shape):
    """One pixel, incomplete tiles and vectors, an empty batch."""
    assert_agrees(op, example(op, *shape))


@pytest.mark.parametrize(
    'heads, channels, size', [(1, 8, (1, 2)), (3, 24, (5, 7)), (5, 80, (30, 23)), (2, 1024, (9, 4))]
)
def test_global_context(heads, channels, size):
    """An odd number of positions, several blocks of them, of any number of heads."""
    torch.manual_seed(0)
    x = channels_last(2, channels, *size)
    vectors = [ops.channel_means(x), torch.randn(2, channels)]
    assert_agrees(ops.add_global_context, [x, *vectors, heads, torch.randn(heads), torch.randn(heads), 1e-5])


@pytest.mark.parametrize('columns', [1, 7, 8, 9, 16, 17, 40, 300])
def test_weight_gradients_of_pointwise_convolutions(columns):
    torch.manual_seed(0)
    for channels, size in ((1, (3, 5)), (6, (1, 1)), (20, (17, 16)), (270, (2, 3))):
        x, grad = channels_last(2, channels, *size), channels_last(2, columns, *size)
        weight, bias = torch.ops.fcvit_mm_cpu.pointwise_conv2d_grad_weight(grad, x)
        want = torch.einsum('bdhw,bchw->dc', grad.double(), x.double())
        torch.testing.assert_close(weight.flatten(1).double(), want, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(bias.double(), grad.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('kernel', [1, 3, 5, 9, 11, 13, 23])
def test_weight_gradients_of_depthwise_convolutions(kernel):
    """Kernels smaller and larger than the map, and more columns than are summed at a time."""
    torch.manual_seed(0)
    for channels, height, width in ((5, 1, 1), (8, 6, 7), (17, 3, 70), (3, 90, 4)):
        x, grad = channels_last(2, channels, height, width), channels_last(2, channels, height, width)
        weight, bias = torch.ops.fcvit_mm_cpu.depthwise_conv2d_grad_weight(grad, x, kernel)
        taps = torch.zeros(channels, 1, kernel, kernel, dtype=torch.double, requires_grad=True)
        output = ops.depthwise_conv2d.reference(x.double(), taps)
        (want,) = torch.autograd.grad(output, taps, grad.double())
        torch.testing.assert_close(weight.double(), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        torch.testing.assert_close(bias.double(), grad.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('op', MIXERS)
def test_slices_of_images(monkeypatch, op):
    """A few images at a time, with a smaller last slice, and one image at a time."""
    args = example(op, 5, 8, 6, 6)
    for size in (2 * 32 * 36 * 4, 1):
        monkeypatch.setattr(gradients, 'SLICE_BYTES', size)
        assert_agrees(op, args)


@pytest.mark.parametrize('op', WITH_GRADIENTS)
def test_second_derivatives(op):
    args = example(op, 2, 8, 3, 4)

    def derive(function, dtype):
        given = leaves(args, dtype)
        first = torch.autograd.grad(function(*given).pow(3).sum(), tensors(given), create_graph=True)
        return [*first, *torch.autograd.grad(sum(grad.pow(2).sum() for grad in first), tensors(given))]

    for have, want in zip(derive(op, torch.float32), derive(op.reference, torch.double)):
        torch.testing.assert_close(have.double(), want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize('op', WITH_GRADIENTS)
def test_only_requested_gradients_are_computed(op):
    """Of one argument alone and of each pair; also for second derivatives."""
    args = example(op, 1, 8, 3, 4)
    places = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    want = torch.autograd.grad(op.reference(*(all_of := leaves(args))).pow(2).sum(), tensors(all_of))
    for wanted in [(place,) for place in places] + list(itertools.combinations(places, 2)):
        for create_graph in (False, True):
            given = [arg.detach().requires_grad_(i in wanted) if i in places else arg for i, arg in enumerate(args)]
            op(*given).pow(2).sum().backward(create_graph=create_graph)
            for i, expected in zip(places, want):
                assert (given[i].grad is not None) == (i in wanted)
                if i in wanted:
                    torch.testing.assert_close(given[i].grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('op', MIXERS)
def test_gradient_in_another_layout(op):
    """An expanded gradient, as of a sum, and a contiguous one (NCHW)."""
    args = leaves(example(op, 2, 8, 3, 4))
    output = op(*args)
    for slope in (torch.ones(()).expand_as(output), torch.randn(output.shape)):
        have = torch.autograd.grad(output, args, slope, retain_graph=True)
        want = torch.autograd.grad(output, args, slope.clone(memory_format=torch.channels_last), retain_graph=True)
        torch.testing.assert_close(have, want)


def test_few_tensors_are_saved_for_the_backward_pass():
    """Besides the arguments, the mixer saves one expanded map (PyTorch three), and the bottleneck nothing."""

    def kept(function, args):
        seen = {}

        def pack(tensor):
            seen[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(*args)
        return sum(size for pointer, size in seen.items() if pointer not in {arg.data_ptr() for arg in args})

    args = leaves(example(ops.channel_mixer, 2, 16, 8, 8))
    expanded = 2 * 64 * 8 * 8
    assert kept(ops.channel_mixer, args) == expanded and kept(ops.channel_mixer.reference, args) >= 3 * expanded
    args = leaves(example(ops.bottleneck, 2, 16, 8, 8))
    assert kept(ops.bottleneck, args) == 0 < kept(ops.bottleneck.reference, args)


@pytest.mark.parametrize('op', [*MIXERS, ops.depthwise_conv2d])
def test_same_bits_with_any_number_of_threads(op):
    """Sums are not divided among threads. (The global context is not tested: PyTorch computes some of its sums.)"""
    args = leaves(example(op, 2, 40, 19, 18))
    threads, results = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(torch.autograd.grad(op(*args).pow(2).sum(), tensors(args)))
    torch.set_num_threads(threads)
    for one, three in zip(*results):
        assert torch.equal(one, three)


@pytest.mark.parametrize('shape', [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4)])
def test_empty_maps(shape):
    x, kernels = torch.empty(shape).contiguous(memory_format=torch.channels_last), torch.ops.fcvit_mm_cpu
    batch, channels, height, width = shape
    vectors, weights = torch.ones(batch, channels), torch.ones(batch, height * width, 1)
    assert kernels.similarities(x, vectors, 1).shape == (batch, height * width, 1)
    assert kernels.add_weighted(x, weights, vectors).shape == shape
    assert torch.equal(kernels.weighted_sums(x, weights), torch.zeros(batch, channels))
    assert torch.equal(kernels.depthwise_conv2d_grad_weight(x, x, 3)[0], torch.zeros(channels, 1, 3, 3))
    assert torch.equal(kernels.pointwise_conv2d_grad_weight(x, x)[0], torch.zeros(channels, channels, 1, 1))


@pytest.mark.parametrize('value', [-30.0, -14.0, -5.25, -1.0, 0.0, 0.3, 5.25, 14.0, 30.0, float('inf'), float('nan')])
def test_derivative_of_gelu(value):
    x, grad = (torch.full((1, 9, 1, 1), number) for number in (value, 2.0))
    (want,) = torch.autograd.grad(torch.nn.functional.gelu(leaf := x.double().requires_grad_()), leaf, grad.double())
    if value == float('inf'):
        want = grad.double()  # PyTorch's is not-a-number, of inf times 0
    torch.testing.assert_close(
        torch.ops.fcvit_mm_cpu.gelu_grad_(x, grad).double(), want, rtol=2e-6, atol=2e-6, equal_nan=True
    )


@pytest.mark.parametrize(
    'name, change, message',
    [
        (
            'depthwise_conv2d_grad_weight',
            {0: torch.ones(2, 8, 6, 5)},
            r'grad is \[2, 8, 6, 5\].*expected \[2, 8, 6, 6\]',
        ),
        ('depthwise_conv2d_grad_weight', {2: 4}, 'kernel_size is 4, expected odd'),
        ('dwconv_gelu_grad_', {2: torch.ones(8, 1, 5, 5)}, r'weight is \[8, 1, 5, 5\].*expected \[8, 1, 3, 3\]'),
        ('dwconv_gelu_grad_', {0: torch.ones(2, 8, 6, 6)}, 'grad is not channels_last'),
        ('pointwise_conv2d_grad_weight', {0: torch.ones(2, 8, 6)}, r'grad is \[2, 8, 6\], expected \(B, D, H, W\)'),
        ('pointwise_conv2d_grad_weight', {0: torch.ones(1, 4, 6, 6)}, r'expected \[2, 4, 6, 6\]'),
        ('gelu_grad_', {1: torch.ones(2, 8, 6, 6)}, 'grad is not channels_last'),
        ('gelu_grad_', {1: torch.ones(2, 8, 6, 6).double()}, 'grad is .* of Double'),
        ('similarities', {2: 3}, 'x has 8 channels, expected a multiple of num_heads=3'),
        ('similarities', {1: torch.ones(2, 9)}, r'vectors is \[2, 9\].*expected \[2, 8\]'),
        ('add_weighted', {1: torch.ones(2, 35, 1)}, r'weights is \[2, 35, 1\].*expected \[2, 36, 1\]'),
        ('weighted_sums', {1: torch.ones(2, 36, 3)}, 'expected a multiple of num_heads=3'),
    ],
)
def test_refuses_invalid_arguments(name, change, message):
    x, grad = channels_last(2, 8, 6, 6), channels_last(2, 8, 6, 6)
    calls = {
        'depthwise_conv2d_grad_weight': [grad, x, 3],
        'dwconv_gelu_grad_': [grad, x, torch.ones(8, 1, 3, 3), None],
        'pointwise_conv2d_grad_weight': [grad, x],
        'gelu_grad_': [x, grad],
        'similarities': [x, torch.ones(2, 8), 1],
        'add_weighted': [x, torch.ones(2, 36, 1), torch.ones(2, 8)],
        'weighted_sums': [x, torch.ones(2, 36, 1)],
    }
    args = [change.get(place, arg) for place, arg in enumerate(calls[name])]
    outputs = {'activated': torch.empty_like(x)} if name == 'dwconv_gelu_grad_' else {}
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.fcvit_mm_cpu, name)(*args, **outputs)


@pytest.mark.skipif(not hasattr(library, 'opcheck'), reason='opcheck came with torch 2.4')
def test_operators_are_well_registered():
    x, grad, out = (channels_last(2, 8, 6, 6) for _ in range(3))
    weight, bias = torch.randn(8, 1, 3, 3), torch.randn(8)
    kernels = torch.ops.fcvit_mm_cpu
    for operator, args, outputs in (
        (kernels.depthwise_conv2d_grad_weight.default, (grad, x, 3), {}),
        (kernels.dwconv_gelu_grad_.default, (grad, x, weight, bias), {'activated': out}),
        (kernels.pointwise_conv2d_grad_weight.default, (grad, x), {}),
        (kernels.gelu_grad_.default, (x, grad), {}),
        (kernels.similarities.default, (x, x[..., 0, 0], 1), {}),
        (kernels.add_weighted.default, (x, torch.randn(2, 36, 1), x[..., 0, 0]), {}),
        (kernels.weighted_sums.default, (x, torch.randn(2, 36, 1)), {}),
        (kernels.depthwise_conv2d.out, (x, weight, bias), {'out': out}),
        (kernels.dwconv_gelu.out, (x, weight, bias), {'out': out}),
        (kernels.pointwise_conv2d.out, (x, torch.randn(8, 8, 1, 1), None), {'out': out}),
    ):
        library.opcheck(operator, args, outputs, test_utils=('test_schema', 'test_faketensor'))


@counts_flops
def test_counted_by_the_flop_counter():
    """A training step costs three forward passes and the recomputed convolution. (For the gradients of grouped
    convolutions, the formula of PyTorch 2.11 counts too much.)"""
    counter = pytest.importorskip('torch.utils.flop_counter')

    def count(function, args, backward=True):
        with counter.FlopCounterMode(display=False) as mode:
            output = function(*args)
            if backward:
                output.sum().backward()
        return mode.get_total_flops()

    for op, again in ((ops.channel_mixer, 2 * 2 * 64 * 64 * 9), (ops.depthwise_conv2d, 0)):
        args = leaves(example(op, 2, 16, 8, 8))
        assert count(op, args) == 3 * count(op.reference, args, backward=False) + again
