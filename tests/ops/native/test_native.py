"""The compiled CPU kernels compared with PyTorch in float64, and operations without the kernels."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from harness import run_python
from torch import library

from fcvit_mm import ops
from fcvit_mm.inference.winograd import winograd_weight
from fcvit_mm.ops import native, use_ops

built = pytest.mark.skipif(
    not native.available(),
    reason='no compiled CPU kernels for this torch and processor here: python setup.py build_ext --inplace builds them',
)


@pytest.mark.parametrize('kernels', ['as installed', 'none'])
def test_instructions_before_the_first_call_of_a_kernel(kernels):
    code = 'import torch, fcvit_mm; from fcvit_mm.ops import native; '
    if kernels == 'none':
        code += 'from pathlib import Path; native.FOLDER = Path("nowhere"); '
    result = run_python('-c', code + 'print(native.instructions())')
    here = torch.backends.cpu.get_cpu_capability() if kernels == 'as installed' and native.available() else 'none'
    assert result.stdout.split() == [here], result.stderr


def channels_last(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).contiguous(memory_format=torch.channels_last)


def convolved(x: torch.Tensor, weight: torch.Tensor, bias=None) -> torch.Tensor:
    """Convolve in float64."""
    return F.conv2d(
        x.double(),
        weight.double(),
        None if bias is None else bias.double(),
        padding=weight.shape[-1] // 2,
        groups=x.shape[1],
    )


def check(x: torch.Tensor, weight: torch.Tensor, bias=None) -> None:
    want = convolved(x, weight, bias)
    for function, expected in ((native.depthwise_conv2d, want), (native.dwconv_gelu, F.gelu(want))):
        got = function(x, weight, bias)
        assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=3e-6 * max(1, weight.shape[-1] / 8))


@built
@pytest.mark.parametrize('kernel', [1, 3, 5, 7, 9, 11, 13])
def test_convolution_at_any_size(kernel):
    """One pixel, less than a tile, tiles of each width, odd and even rows; with and without a bias."""
    torch.manual_seed(0)
    for height, width in ((1, 1), (1, 6), (5, 1), (2, 3), (7, 7), (8, 13), (3, 16), (3, 29)):
        for batch, channels in ((1, 8), (3, 5), (2, 20)):
            weight = torch.randn(channels, 1, kernel, kernel) / kernel
            for bias in (None, torch.randn(channels)):
                check(channels_last(batch, channels, height, width), weight, bias)


@built
@pytest.mark.parametrize('kernel', [3, 7])
def test_convolution_with_any_number_of_channels(kernel):
    torch.manual_seed(0)
    for channels in (*range(1, 34), 40, 257, 300):
        check(
            channels_last(2, channels, 4, 5), torch.randn(channels, 1, kernel, kernel) / kernel, torch.randn(channels)
        )


@built
@pytest.mark.parametrize('kernel', [3, 5, 11, 31])
@pytest.mark.parametrize('height, width', [(70, 67), (11, 140), (140, 11)])
def test_convolution_of_large_maps(kernel, height, width):
    """More than a thread computes at a time, in both directions."""
    torch.manual_seed(0)
    check(channels_last(1, 19, height, width), torch.randn(19, 1, kernel, kernel) / kernel, torch.randn(19))


@built
@pytest.mark.parametrize('shape', [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0)])
def test_empty_maps(shape):
    weight = torch.randn(shape[1], 1, 3, 3)
    for function in (native.depthwise_conv2d, native.dwconv_gelu):
        assert function(torch.empty(shape), weight).shape == shape
    x, (batch, channels, *size) = torch.empty(shape), shape
    args = products(channels, 6, channels)
    assert native.pointwise_conv2d(x, *args[:2]).shape == (batch, 6, *size)
    assert native.bottleneck(x, *args).shape == shape
    assert native.channel_mixer(x, *args[:2], torch.randn(6, 1, 3, 3), torch.randn(6), *args[2:]).shape == shape
    assert native.group_norm(x, None, None, 1e-5).shape == shape


def products(channels: int, hidden: int, columns: int):
    """Weights and biases of two 1x1 convolutions."""
    sizes = ((hidden, channels), (columns, hidden))
    return [value for n, k in sizes for value in (torch.randn(n, k, 1, 1) / max(k, 1) ** 0.5, torch.randn(n))]


@built
@pytest.mark.parametrize('threads', [1, 2, 5])
@pytest.mark.parametrize('channels, hidden', [(8, 12), (20, 300), (33, 1), (64, 512), (300, 37)])
@pytest.mark.parametrize('shape', [(1, 7, 7), (3, 9, 5), (2, 40, 33), (0, 4, 4)])
def test_packed_weights_give_the_same_bits(shape, channels, hidden, threads):
    torch.manual_seed(0)
    batch, *size = shape
    x = channels_last(batch, channels, *size)
    first, first_bias, second, second_bias = products(channels, hidden, channels)
    taps, taps_bias = torch.randn(hidden, 1, 3, 3), torch.randn(hidden)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = [
            (
                native.bottleneck(x, one, first_bias, two, second_bias),
                native.channel_mixer(x, one, first_bias, kernels, taps_bias, two, second_bias, x),
                native.pointwise_conv2d(x, one, first_bias),
            )
            for one, kernels, two in (
                (first, taps, second),
                (native.pack(first), native.pack_taps(taps), native.pack(second)),
            )
        ]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(want, have) for want, have in zip(*results))


@built
@pytest.mark.parametrize(
    'change, message',  # P: the width of a panel
    [
        (
            lambda P: dict(fc1_weight=torch.ones(12, 8, 1, 1)),
            r'\[12, 8, 1, 1\] and fc2_weight is \[1, 12, P\].*both',
        ),
        (lambda P: dict(fc1_weight=torch.ones(2, 8, P)), r'fc1_weight is \[2, 8, P\].*expected \[1, 8, P\]'),
        (lambda P: dict(fc1_weight=torch.ones(1, P, 8).mT), 'fc1_weight is not contiguous'),
        (lambda P: dict(fc2_weight=torch.ones(1, 11, P)), r'fc2_weight is \[1, 11, P\].*expected \[1, 12, P\]'),
        (lambda P: dict(fc1_bias=torch.ones(13)), r'fc2_weight is \[1, 12, P\].*expected \[1, 13, P\]'),
    ],
)
def test_invalid_packed_weights_are_refused(change, message):
    width = native.panel_width()
    change, message = change(width), message.replace('P', str(width))
    names = ('fc1_weight', 'fc1_bias', 'fc2_weight', 'fc2_bias')
    args = dict(zip(names, products(8, 12, 8)), x=torch.ones(2, 8, 4, 4))
    args.update({name: native.pack(args[name]) for name in ('fc1_weight', 'fc2_weight')})
    args.update(change)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fcvit_mm_cpu.bottleneck(**args)
    hidden = args['fc1_bias'].numel()
    with pytest.raises(RuntimeError, match=message):
        taps = native.pack_taps(torch.ones(hidden, 1, 3, 3))
        torch.ops.fcvit_mm_cpu.channel_mixer(**args, dw_weight=taps, dw_bias=torch.ones(hidden))


@built
def test_packed_weights_without_a_bias_are_refused():
    with pytest.raises(RuntimeError, match=r'weight is \[1, 8, \d+\] without a bias'):
        native.pointwise_conv2d(torch.ones(1, 8, 2, 2), native.pack(torch.ones(3, 8, 1, 1)))


@built
def test_packed_and_unpacked_weights_together_are_refused():
    first, first_bias, second, second_bias = products(8, 12, 8)
    fc1, fc2, taps = native.pack(first), native.pack(second), torch.ones(12, 1, 3, 3)
    with pytest.raises(RuntimeError, match=r'dw_weight is \[12, 1, 3, 3\].*expected \[2, 9, '):
        native.channel_mixer(torch.ones(2, 8, 4, 4), fc1, first_bias, taps, torch.ones(12), fc2, second_bias)
    with pytest.raises(RuntimeError, match=r'dw_weight is .*expected \[12, 1, 3, 3\]'):
        packed = native.pack_taps(taps)
        native.channel_mixer(torch.ones(2, 8, 4, 4), first, first_bias, packed, torch.ones(12), second, second_bias)


def check_product(x: torch.Tensor, columns: int) -> None:
    weight, bias = torch.randn(columns, x.shape[1], 1, 1) / max(x.shape[1], 1) ** 0.5, torch.randn(columns)
    for shift in (bias, None):
        got = native.pointwise_conv2d(x, weight, shift)
        assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
        want = F.conv2d(x.double(), weight.double(), None if shift is None else shift.double())
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=5e-6)


def check_bottleneck(x: torch.Tensor, hidden: int, columns: int) -> None:
    args = products(x.shape[1], hidden, columns)
    want = ops.bottleneck.reference(*(arg.double() for arg in (x, *args)))
    torch.testing.assert_close(native.bottleneck(x, *args).double(), want, rtol=1e-6, atol=5e-6)


@built
def test_products_of_any_number_of_channels():
    """Incomplete panels and vectors, of inputs and of outputs; a tile of each number of rows."""
    torch.manual_seed(0)
    for positions in range(1, 30):
        check_product(channels_last(1, 19, 1, positions), 37)
    for columns in (*range(1, 66), 257):
        check_product(channels_last(2, 13, 3, 2), columns)
        check_bottleneck(channels_last(2, 13, 3, 2), columns, 5)
    for channels in (*range(1, 34), 255, 256, 257, 600):
        check_product(channels_last(1, channels, 2, 4), 24)
        check_bottleneck(channels_last(1, channels, 2, 4), 9, 24)


@built
def test_products_of_large_maps_and_weights():
    torch.manual_seed(0)
    for batch, channels, size, columns in ((1, 4, 100, 20), (3, 300, 9, 700), (2, 1030, 5, 40)):
        check_product(channels_last(batch, channels, size, size), columns)
        check_bottleneck(channels_last(batch, channels, size, size), 24, columns)


@built
@pytest.mark.parametrize('threads', [1, 2, 5])
def test_channel_mixers_of_any_size(threads):
    """Odd numbers of rows, of channels, of expanded channels; bands of rows, for threads and for the cache."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    cases = [
        ((1, 8, 1, 1), 16),
        ((2, 5, 2, 3), 7),
        ((1, 24, 7, 7), 200),
        ((3, 16, 9, 5), 131),
        ((1, 12, 31, 40), 150),
        ((1, 3, 5, 700), 65),
        ((2, 600, 3, 4), 70),
        ((1, 4, 3, 3), 0),
        ((1, 9, 5, 6), 333),  # expanded channels divided among threads, the last share smaller
        ((3, 16, 8, 7), 640),
    ]
    for shape, hidden in cases:
        args = products(shape[1], hidden, shape[1])
        args[2:2] = [torch.randn(hidden, 1, 3, 3) / 3, torch.randn(hidden)]
        x = channels_last(*shape)
        want = ops.channel_mixer.reference(*(arg.double() for arg in (x, *args))) if hidden else args[-1].double()
        want = want if hidden else want.view(1, -1, 1, 1).expand(shape)
        try:
            torch.set_num_threads(threads)  # of the kernel alone: PyTorch's would wait for each other here
            have = native.channel_mixer(x, *args)
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(have.double(), want, rtol=1e-6, atol=5e-6)


def winograd_arguments(weight: torch.Tensor):
    return native.winograd_panels(winograd_weight(weight)), len(weight)


@built
@pytest.mark.parametrize('batch, height, width', [(1, 1, 1), (2, 4, 8), (3, 7, 5), (1, 33, 2), (2, 41, 43)])
@pytest.mark.parametrize('channels, outputs', [(1, 1), (7, 17), (8, 16), (20, 3), (300, 40)])
def test_winograd_convolution_of_any_size(batch, height, width, channels, outputs):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(batch, channels, height, width),
        torch.randn(outputs, channels, 3, 3),
        torch.randn(outputs),
    )
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    for layout, added in ((torch.contiguous_format, None), (torch.channels_last, bias)):
        got = native.winograd_conv2d(x.contiguous(memory_format=layout), *winograd_arguments(weight), added)
        assert got.is_contiguous(memory_format=torch.channels_last)
        want = expected if added is None else expected + bias.double()[:, None, None]
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 * max(1, want.abs().max().item()))


@built
def test_nan_in_a_tile_does_not_affect_its_neighbours():
    """Values outside of the map are zeros, not products with zero; other tiles stay finite."""
    x = torch.zeros(1, 8, 8, 12)
    x[..., 0, 0] = float('nan')
    got = native.winograd_conv2d(x, *winograd_arguments(torch.ones(8, 8, 3, 3)), torch.ones(8))
    assert got[..., :2, :2].isnan().all() and torch.equal(got[..., 8:], torch.ones(1, 8, 8, 4))


@built
@pytest.mark.parametrize('shape', [(0, 8, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0), (2, 0, 4, 4)])
def test_winograd_convolution_of_empty_maps(shape):
    bias, panels = torch.arange(5.0), torch.ones(36, 1, shape[1], native.panel_width())
    got = native.winograd_conv2d(torch.ones(shape), panels, 5, bias)
    torch.testing.assert_close(got, bias[:, None, None].expand(shape[0], 5, *shape[2:]))
    assert not native.winograd_conv2d(torch.ones(shape), panels, 5).any()


@built
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(x=torch.ones(2, 8, 4)), r'x is \[2, 8, 4\].*expected \(B, C, H, W\)'),
        (dict(x=torch.ones(2, 9, 4, 4)), r'panels is \[36, 2, 8, P\].*expected \[36, 2, 9, P\]'),
        (dict(outputs=65), r'expected \[36, [35], 8, P\]'),
        (dict(outputs=-1), r'expected \[36, 0, 8, P\]'),
        (dict(panels=torch.ones(36, 2, 8, 16).double()), 'panels is .* of Double'),
        (dict(panels=None), 'panels is not contiguous'),
        (dict(bias=torch.ones(7)), r'bias is \[7\].*expected \[P\]'),
    ],
)
def test_winograd_operator_refuses_invalid_arguments(change, message):
    width = native.panel_width()
    message = message.replace('P', str(width + 4) if 'bias' in message else str(width))
    outputs = width + 4
    args = dict(x=torch.ones(2, 8, 4, 4), panels=torch.ones(36, 2, 8, width), outputs=outputs, bias=torch.ones(outputs))
    if 'panels' in change and change['panels'] is None:
        change = dict(panels=torch.ones(36, 2, width, 8).transpose(2, 3))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fcvit_mm_cpu.winograd_conv2d(**{**args, **change})


@built
def test_global_context_of_any_size():
    """Several blocks of positions, several vectors per head, a single value, equal values without a deviation."""
    torch.manual_seed(0)
    for shape, heads in (
        ((1, 8, 1, 1), 1),
        ((3, 16, 5, 7), 2),
        ((2, 72, 3, 4), 3),
        ((2, 64, 41, 37), 8),
        ((1, 8, 1, 6), 1),
        ((2, 12, 4, 3), 3),
        ((1, 40, 5, 3), 2),
        ((2, 3, 2, 7), 3),
    ):
        for x in (channels_last(*shape), torch.ones(shape).contiguous(memory_format=torch.channels_last)):
            batch, channels = shape[:2]
            vectors = [torch.randn(batch, channels), torch.randn(heads), torch.randn(heads)]
            context, *rescale = (vector.double() for vector in vectors)
            want = ops.add_global_context.reference(
                x.double(), ops.channel_means(x.double()), context, heads, *rescale, 1e-5
            )
            got = native.add_global_context(x, ops.channel_means(x), vectors[0], heads, *vectors[1:], 1e-5)
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)


@built
def test_scaled_residual_of_any_number_of_channels():
    torch.manual_seed(0)
    for channels in (*range(1, 18), 300):
        x, branch, scale = channels_last(2, channels, 3, 67), torch.randn(2, channels, 3, 67), torch.randn(channels)
        want = x.double() + branch.double() * scale.double().view(-1, 1, 1)
        torch.testing.assert_close(native.add_scaled(x, branch, scale).double(), want, rtol=1e-6, atol=1e-6)


@built
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(x=torch.ones(2, 13, 4, 4)), r'x has 13 channels, expected a multiple of num_heads=2'),
        (dict(num_heads=0), 'num_heads=0'),
        (dict(x=torch.ones(2, 16, 4, 4).double()), 'x is .* of Double'),
        (dict(means=torch.ones(2, 15)), r'means is \[2, 15\].*expected \[2, 16\]'),
        (dict(context=torch.ones(3, 16)), r'context is \[3, 16\].*expected \[2, 16\]'),
        (dict(rescale_weight=torch.ones(1)), r'rescale_weight is \[1\].*expected \[2\]'),
        (dict(rescale_bias=torch.ones(2).half()), 'rescale_bias is .* of Half'),
    ],
)
def test_context_operator_refuses_invalid_arguments(change, message):
    args = dict(x=torch.ones(2, 16, 4, 4), means=torch.ones(2, 16), context=torch.ones(2, 16), num_heads=2)
    args.update(rescale_weight=torch.ones(2), rescale_bias=torch.ones(2), eps=1e-5)
    args.update(change)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fcvit_mm_cpu.add_global_context(**args)


@built
def test_residual_operator_refuses_invalid_arguments():
    x, scale = torch.ones(2, 16, 4, 4), torch.ones(16)
    with pytest.raises(RuntimeError, match=r'branch is \[2, 16, 4, 3\].*expected \[2, 16, 4, 4\]'):
        torch.ops.fcvit_mm_cpu.add_scaled(x, x[..., 1:], scale)
    with pytest.raises(RuntimeError, match=r'scale is \[15\].*expected \[16\]'):
        torch.ops.fcvit_mm_cpu.add_scaled(x, x, scale[1:])


@built
def test_operators_accept_other_layouts():
    """Direct calls of the operators with a sliced weight, a strided bias and a contiguous map (NCHW)."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 12, 6, 7), torch.randn(24, 1, 7, 7)[::2], torch.randn(24)[::2]
    check(x, weight / 7, bias)
    check(x[:, :, ::2, 1:], weight.transpose(2, 3) / 7, bias)
    weight = torch.randn(12, 24, 1, 1).transpose(0, 1)
    got = native.pointwise_conv2d(x[:, :, ::2, 1:], weight, torch.randn(24, 2)[:, 1] * 0)
    torch.testing.assert_close(got, F.conv2d(x[:, :, ::2, 1:], weight), rtol=1e-5, atol=1e-5)


@built
def test_result_does_not_depend_on_threads():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    try:
        for kernel in (3, 11):
            x, weight = channels_last(1, 24, 40, 33), torch.randn(24, 1, kernel, kernel)
            outputs = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                outputs.append(native.dwconv_gelu(x, weight))
            assert all(torch.equal(outputs[0], output) for output in outputs)
        # Up to 2 x 64 expanded channels are not divided among threads, as those of small maps are.
        x, args = channels_last(3, 40, 13, 11), products(40, 127, 40)
        taps = [torch.randn(127, 1, 3, 3), torch.randn(127)]
        for function, call in (
            (native.pointwise_conv2d, args[:2]),
            (native.bottleneck, args),
            (native.channel_mixer, [*args[:2], *taps, *args[2:]]),
            (native.add_global_context, [x[..., 0, 0], x[..., 1, 1], 5, torch.randn(5), torch.randn(5), 1e-5]),
            (native.add_scaled, [x.flip(2), torch.randn(40)]),
            (native.group_norm, [torch.randn(40), None, 1e-5]),
            (native.winograd_conv2d, [*winograd_arguments(torch.randn(50, 40, 3, 3)), torch.randn(50)]),
        ):
            outputs = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                outputs.append(function(x, *call))
            assert all(torch.equal(outputs[0], output) for output in outputs), function
    finally:
        torch.set_num_threads(before)


@built
def test_gelu_agrees_with_the_exact_formula():
    magnitudes = torch.logspace(-40, 38, 1001)
    x = torch.cat([torch.linspace(-12, 12, 200003), magnitudes, -magnitudes, torch.tensor([0.0, -0.0])]).view(
        1, 1, 1, -1
    )
    identity = torch.zeros(1, 1, 3, 3)
    identity[..., 1, 1] = 1
    expected = F.gelu(x.double())
    for got in (native.dwconv_gelu(x, identity), native.gelu_(x.clone())):
        error = (got.double() - expected).abs()
        assert (error / x.abs().clamp(min=1)).max() <= 1e-6
    infinite = torch.tensor([float('inf'), float('-inf'), float('nan')])
    assert native.gelu_(infinite)[0] == float('inf') and infinite[1].abs() < 1e-6 and infinite[2].isnan()


@built
def test_gelu_in_place():
    torch.manual_seed(0)
    for x in (channels_last(3, 5, 7, 9), torch.randn(2, 3, 4, 5), torch.randn(4, 1, 1, 5000), torch.randn(0, 2, 3, 4)):
        expected, address = F.gelu(x), x.data_ptr()
        got = native.gelu_(x)
        assert got is x and got.data_ptr() == address
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match='not a dense tensor of float32'):
        native.gelu_(torch.ones(2, 8, 4, 4)[:, ::2])


@built
@pytest.mark.parametrize('shared', [slice(0, 2), slice(1, 3)], ids=['all', 'part'])
def test_outputs_that_share_memory_with_an_input_are_refused(shared):
    """Neighbouring positions would read values that are overwritten already."""
    kernels, images = torch.ops.fcvit_mm_cpu, channels_last(4, 8, 4, 4)
    x, out, other, weight = images[:2], images[shared], channels_last(2, 8, 4, 4), torch.randn(8, 1, 3, 3)
    calls = [
        lambda: kernels.depthwise_conv2d.out(x, weight, None, out=out),
        lambda: kernels.dwconv_gelu.out(x, weight, None, out=out),
        lambda: kernels.pointwise_conv2d.out(x, torch.randn(8, 8, 1, 1), None, out=out),
        lambda: kernels.dwconv_gelu_grad_(out, x, weight, None, activated=other),
        lambda: kernels.dwconv_gelu_grad_(other, x, weight, None, activated=out),
        lambda: kernels.dwconv_gelu_grad_(x, other, weight, None, activated=out),
    ]
    if shared.start:  # GELU reads the same values that it writes, no others
        calls.append(lambda: kernels.gelu_grad_(x, out))
    for call in calls:
        with pytest.raises(RuntimeError, match='refer to a single memory location'):
            call()
    kernels.depthwise_conv2d.out(x, weight, None, out=images[2:])


@built
@pytest.mark.parametrize('kernel', [3, 7])
@pytest.mark.parametrize('with_bias', [False, True])
def test_gradients(kernel, with_bias):
    torch.manual_seed(0)
    args = [channels_last(2, 9, 6, 5), torch.randn(9, 1, kernel, kernel) / kernel, torch.randn(9)][: 2 + with_bias]

    def gradients(function, dtype):
        leaves = [arg.to(dtype).requires_grad_() for arg in args]
        first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(grad.pow(2).sum() for grad in first), leaves)]

    expected = gradients(ops.depthwise_conv2d.reference, torch.double)
    for want, have in zip(expected, gradients(native.depthwise_conv2d, torch.float32)):
        torch.testing.assert_close(have.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@built
def test_only_requested_gradients_are_computed():
    x, weight, bias = channels_last(2, 4, 5, 5), torch.randn(4, 1, 3, 3), torch.randn(4)
    for wanted in itertools.product((False, True), repeat=3):
        args = [arg.clone().requires_grad_(grad) for arg, grad in zip((x, weight, bias), wanted)]
        output = native.depthwise_conv2d(*args)
        assert output.requires_grad == any(wanted)
        if any(wanted):
            output.sum().backward()
        assert [arg.grad is not None for arg in args] == list(wanted)


@built
@pytest.mark.parametrize('affine', [False, True])
def test_group_norm(affine):
    """Any size, one image or many for each thread, with a mean that is large beside the deviation, constant maps."""
    torch.manual_seed(0)
    for shape in ((2, 3, 1, 2), (2, 8, 3, 5), (3, 13, 9, 8), (4, 64, 40, 23), (1, 300, 11, 13)):
        weight, bias = (torch.randn(shape[1]), torch.randn(shape[1])) if affine else (None, None)
        for offset in (0, 1000):
            x = channels_last(*shape) + offset
            doubles = [None if vector is None else vector.double() for vector in (weight, bias)]
            want = F.group_norm(x.double(), 1, *doubles, 1e-5)
            have = native.group_norm(x, weight, bias, 1e-5)
            # Far from 0, the map's own digits are what is left.
            torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=1e-5 if not offset else 2e-3)
            assert have.is_contiguous(memory_format=torch.channels_last)
    flat = native.group_norm(torch.full((2, 8, 4, 4), 3.0), None, None, 1e-5)
    assert torch.equal(flat, torch.zeros(2, 8, 4, 4))
    assert native.group_norm(torch.full((1, 8, 4, 4), float('nan')), None, None, 1e-5).isnan().all()


@built
def test_group_norm_keeps_its_precision_where_the_first_value_is_far_from_the_others():
    torch.manual_seed(0)
    x = channels_last(2, 24, 40, 40)
    x[:, 0, 0, 0] = 1e4
    want = F.group_norm(x.double(), 1, None, None, 1e-5)
    have = native.group_norm(x, None, None, 1e-5)
    torch.testing.assert_close(have.double(), want, rtol=2e-6, atol=2e-6)


# Which calls use the kernels.


def chosen(op, *args):
    return op.choose(*args).function


@built
def test_dispatch():
    x, weight, bias = channels_last(2, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(8)
    for op, function in ((ops.depthwise_conv2d, native.depthwise_conv2d), (ops.dwconv_gelu, native.dwconv_gelu)):
        assert chosen(op, x, weight, bias) is chosen(op, x, weight) is function
        assert chosen(op, x.contiguous(), weight, bias) is not function
        assert chosen(op, x.double(), weight.double()) is not function
        assert chosen(op, x, weight.bfloat16()) is not function
        assert chosen(op, x.to('meta'), weight.to('meta')) is not function
        with torch.autocast('cpu', torch.bfloat16):
            assert chosen(op, x, weight, bias) is not function
        with use_ops('reference'):
            assert chosen(op, x, weight, bias) is op.reference
    assert chosen(ops.gelu_, x) is native.gelu_
    assert chosen(ops.gelu_, x.contiguous()) is not native.gelu_
    assert chosen(ops.gelu_, x.clone().requires_grad_()) is not native.gelu_
    args = products(8, 12, 8)
    taps = [torch.randn(12, 1, 3, 3), torch.randn(12)]
    for op, call in (
        (ops.conv2d, [x, *args[:2]]),
        (ops.bottleneck, [x, *args]),
        (ops.channel_mixer, [x, *args[:2], *taps, *args[2:]]),
    ):
        assert op.choose(*call).name == 'native'
        assert op.choose(x.contiguous(), *call[1:]).name != 'native'
        assert (op.choose(x, call[1].clone().requires_grad_(), *call[2:]).name == 'native') == (op is not ops.conv2d)
        assert op.choose(*(arg.double() for arg in call)).name != 'native'
        with torch.autocast('cpu', torch.bfloat16):
            assert op.choose(*call).name != 'native'
    for settings in ((2, 0), (1, 1), (1, 0, 8), (1, (0, 1))):  # stride, padding, groups
        kernels = torch.randn(8, 8 // (settings[2:] or (1,))[0], 1, 1)
        assert ops.conv2d.choose(x, kernels, None, *settings).name != 'native'
    assert ops.channel_mixer.choose(x, *args[:2], torch.randn(12, 1, 5, 5), taps[1], *args[2:]).name != 'native'
    weight.requires_grad_()
    assert chosen(ops.depthwise_conv2d, x, weight) is not native.depthwise_conv2d
    assert chosen(ops.depthwise_conv2d, x, torch.ones(8, 1, 5, 5).requires_grad_()) is native.depthwise_conv2d
    assert chosen(ops.dwconv_gelu, x, weight) is not native.dwconv_gelu
    with torch.no_grad():
        assert chosen(ops.dwconv_gelu, x, weight) is native.dwconv_gelu


@built
@pytest.mark.skipif(not hasattr(library, 'opcheck'), reason='opcheck came with torch 2.4')
def test_operators_are_well_registered():
    x, weight, bias = channels_last(2, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(8)
    weights, taps = products(8, 12, 8), (torch.randn(12, 1, 3, 3), torch.randn(12))
    utilities = ('test_schema', 'test_faketensor')
    for name, args in (
        ('depthwise_conv2d', (x, weight, bias)),
        ('depthwise_conv2d', (x.contiguous(), weight, None)),
        ('dwconv_gelu', (x, weight, bias)),
        ('pointwise_conv2d', (x, *weights[:2])),
        ('pointwise_conv2d', (x.contiguous(), weights[0], None)),
        ('bottleneck', (x, *weights)),
        ('channel_mixer', (x, *weights[:2], *taps, *weights[2:])),
        ('add_global_context', (x, x[..., 0, 0], x[..., 1, 1], 1, bias[:1], bias[1:2], 1e-5)),
        ('add_scaled', (x, x, bias)),
        ('group_norm', (x, bias, None, 1e-5)),
        ('winograd_conv2d', (x, *winograd_arguments(torch.randn(24, 8, 3, 3)), None)),
        ('gelu_', (x,)),
    ):
        library.opcheck(getattr(torch.ops.fcvit_mm_cpu, name).default, args, test_utils=utilities)


def block(x, weight, bias, *others):
    x = ops.dwconv_gelu(ops.depthwise_conv2d(x, weight, bias), weight, bias)
    x = ops.bottleneck(ops.conv2d(x, *others[:2]), *others[:2], *others[4:])
    return ops.channel_mixer(x, *others)


def args_of_block():
    torch.manual_seed(0)
    square = (torch.randn(8, 8, 1, 1) / 3, torch.randn(8))
    taps = torch.randn(8, 1, 3, 3) / 3, torch.randn(8)
    return channels_last(2, 8, 6, 6), torch.randn(8, 1, 11, 11) / 11, torch.randn(8), *square, *taps, *square


@built
def test_traced_and_exported_graphs_contain_no_kernels():
    args = args_of_block()
    traced = torch.jit.trace(block, args)
    assert 'fcvit_mm_cpu' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*args), block(*args), rtol=1e-5, atol=1e-5)
    if torch.__version__ >= '2.5':

        class Module(torch.nn.Module):
            def forward(self, *args):
                return block(*args)

        # A strict export records by Dynamo, as a compiler does, which may record them: told apart since 2.7.
        for strict in (False, True)[: 1 + (torch.__version__ >= '2.7')]:
            with torch.no_grad():
                exported = torch.export.export(Module(), args, strict=strict)
            assert 'fcvit_mm' not in str(exported.graph)


@built
def test_gelu_in_place_is_seen_by_autograd():
    """A backward pass that needs the overwritten map raises PyTorch's error instead of a wrong gradient."""
    scale = torch.randn(1, requires_grad=True)
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    y = x * scale
    native.gelu_(x)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()
    with torch.inference_mode():
        native.gelu_(torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last))


@built
@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_dynamo_compiling'), reason='this torch cannot tell a compiler from an exporter'
)
@pytest.mark.parametrize('grad', [False, True])
def test_compiled_graphs_contain_the_kernels(grad):
    args = [arg.requires_grad_(grad) for arg in args_of_block()]
    graphs = []

    def backend(module, inputs):
        graphs.append(str(module.graph))
        return module.forward

    compiled = torch.compile(block, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*args), block(*args))
    assert len(graphs) == 1
    for name in native.CONVOLUTIONS:  # with gradients, inside another node or not at all
        assert grad or f'fcvit_mm_cpu.{name}' in graphs[0]


# Where the kernels are not installed.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Let the package look for the compiled kernels in an empty folder."""
    native._load.cache_clear()
    monkeypatch.setattr(native, 'FOLDER', tmp_path)
    yield tmp_path
    native._load.cache_clear()


def assert_falls_back(*expected_warnings: str) -> None:
    """Check that two calls give the result of the reference, and that the first gives these warnings."""
    x, weight = channels_last(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        outputs = [ops.depthwise_conv2d(x, weight) for _ in range(2)]
    for output in outputs:
        torch.testing.assert_close(output, ops.depthwise_conv2d.reference(x, weight))
    assert ops.depthwise_conv2d.choose(x, weight).name == 'reference'
    messages = [str(warning.message) for warning in caught if 'fcvit_mm' in str(warning.message)]
    assert len(messages) == len(expected_warnings)
    for message, expected in zip(messages, expected_warnings):
        assert expected in message and '`pip install --no-build-isolation`' in message


def test_without_kernels(folder):
    assert_falls_back()


def test_kernels_for_another_torch(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    (folder / f'{native.name_of_library("1.0.0+cu1")}.so').touch()
    assert_falls_back(f'were built for torch 1.0.0, but torch {torch.__version__} is installed')


def test_kernels_that_cannot_be_loaded(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    (folder / f'{native.name_of_library(torch.__version__)}.so').write_bytes(b'\x7fELF')
    assert_falls_back('cannot be loaded')


def test_processor_that_lacks_the_instructions(monkeypatch):
    native._load.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'DEFAULT')
    try:
        assert_falls_back()
    finally:
        native._load.cache_clear()


def test_setup_names_the_library_as_the_package_does():
    """setup.py has its own copy of the name: it runs before the requirements of the package are installed."""
    source = (native.FOLDER.parents[2] / 'setup.py').read_text()
    assert native.name_of_library('2.12.0a0+git1') == 'kernels_for_torch_2_12_0a0'
    assert f".{native.name_of_library('')}{{version}}'" in source


@built
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(x=torch.ones(2, 8, 4)), r'x is \[2, 8, 4\].*expected \(B, C, H, W\)'),
        (dict(x=torch.ones(2, 8, 4, 4).double()), 'x is .* of Double on cpu'),
        (dict(weight=torch.ones(8, 1, 4, 4)), r'weight is \[8, 1, 4, 4\].*k odd'),
        (dict(weight=torch.ones(9, 1, 3, 3)), r'expected \(8, 1, k, k\)'),
        (dict(weight=torch.ones(8, 1, 3, 5)), r'expected \(8, 1, k, k\)'),
        (dict(bias=torch.ones(7)), r'bias is \[7\].*expected \[8\]'),
        (dict(bias=torch.ones(8).bfloat16()), 'bias is .* of BFloat16'),
    ],
)
def test_operators_refuse_invalid_arguments(change, message):
    args = dict(x=torch.ones(2, 8, 4, 4), weight=torch.ones(8, 1, 3, 3), bias=torch.ones(8))
    args.update(change)
    for name in ('depthwise_conv2d', 'dwconv_gelu'):
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.fcvit_mm_cpu, name)(**args)


@built
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(x=torch.ones(2, 8, 4)), r'x is \[2, 8, 4\].*expected \(B, C, H, W\)'),
        (dict(fc1_weight=torch.ones(12, 8)), r'fc1_weight is \[12, 8\], expected \(D, 8, 1, 1\)'),
        (dict(fc1_weight=torch.ones(12, 9, 1, 1)), r'fc1_weight is \[12, 9, 1, 1\].*expected \[12, 8, 1, 1\]'),
        (dict(fc1_bias=torch.ones(8)), r'fc1_bias is \[8\].*expected \[12\]'),
        (dict(dw_weight=torch.ones(12, 1, 5, 5)), r'dw_weight is .*expected \[12, 1, 3, 3\]'),
        (dict(dw_bias=torch.ones(12).half()), 'dw_bias is .* of Half .*expected .* of float32 on cpu'),
        (dict(fc2_weight=torch.ones(8, 11, 1, 1)), r'fc2_weight is .*expected \[8, 12, 1, 1\]'),
        (dict(fc2_bias=torch.ones(9)), r'fc2_bias is \[9\].*expected \[8\]'),
    ],
)
def test_product_operators_refuse_invalid_arguments(change, message):
    args = dict(zip(('fc1_weight', 'fc1_bias', 'fc2_weight', 'fc2_bias'), products(8, 12, 8)))
    args = dict(x=torch.ones(2, 8, 4, 4), **args, dw_weight=torch.ones(12, 1, 3, 3), dw_bias=torch.ones(12))
    args.update(change)
    of_mixer = any(name.startswith('dw') for name in change)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fcvit_mm_cpu.channel_mixer(**args)
    rest = {name: value for name, value in args.items() if not name.startswith('dw')}
    if not of_mixer:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fcvit_mm_cpu.bottleneck(**rest)
    only = {name.replace('fc1_', ''): value for name, value in rest.items() if not name.startswith('fc2')}
    if not of_mixer and 'fc2' not in next(iter(change)):
        with pytest.raises(RuntimeError, match=message.replace('fc1_', '')):
            torch.ops.fcvit_mm_cpu.pointwise_conv2d(**only)
