"""Questions to the GPU kernels.

``test_triton_kernels.py`` runs them with ``TRITON_INTERPRET=1``. On a GPU: ``python -m pytest`` of this file, without.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import library

from fcvit_mm.ops.triton import channel_means, depthwise_conv2d, dwconv_gelu, global_context_add, support

DEVICE = 'cpu' if support.INTERPRETED else 'cuda'
EPS, HEADS = 1e-5, 2
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
#: Largest difference, as a share of the largest value: two roundings of the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random(*shape, dtype=torch.float32, layout=CONTIGUOUS, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE, dtype)
    return (x.contiguous(memory_format=layout) if x.dim() == 4 else x).requires_grad_()


def plain_depthwise(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def plain_dwconv_gelu(x, weight, bias):
    return F.gelu(plain_depthwise(x, weight, bias))


def plain_global_context(x, context, weight, bias):
    """The spec's steps 2 to 6, in the dtype of x."""
    heads = x.unflatten(1, (HEADS, -1))
    similarity = (heads * heads.mean((3, 4), keepdim=True)).sum(2) * heads.shape[2] ** -0.5
    std = similarity.std((1, 2, 3), correction=int(similarity.shape[1:].numel() > 1), keepdim=True)
    similarity = (similarity - similarity.mean((1, 2, 3), keepdim=True)) / (std + EPS)
    similarity = similarity * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return x + (similarity.unsqueeze(2) * context.unflatten(1, (HEADS, -1))[..., None, None]).flatten(1, 2)


def global_context(x, context, weight, bias):
    return global_context_add(x, channel_means(x), context, HEADS, weight, bias, EPS)


def convolution_inputs(shape, kernel_size, dtype=torch.float32, layout=LAST, weight_dtype=None):
    weight_dtype = weight_dtype or dtype
    return (
        random(*shape, dtype=dtype, layout=layout),
        random(shape[1], 1, kernel_size, kernel_size, dtype=weight_dtype),
        random(shape[1], dtype=weight_dtype),
    )


def context_inputs(shape, dtype=torch.float32, layout=LAST, weight_dtype=None):
    weight_dtype = weight_dtype or dtype
    return (
        random(*shape, dtype=dtype, layout=layout),
        random(*shape[:2], dtype=weight_dtype, seed=1),
        random(HEADS, dtype=weight_dtype, seed=2),
        random(HEADS, dtype=weight_dtype, seed=3),
    )


def assert_close(name, ours, expected, dtype):
    assert ours.shape == expected.shape, name
    if expected.numel():
        error = (ours.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error <= TOLERANCE[dtype], f'{name} is {error:.1e} off'


def check(fast, plain, inputs):
    """Values and gradients of the fast form against the definition in double precision."""
    exact = [value.detach().double().requires_grad_() for value in inputs]
    out, expected = fast(*inputs), plain(*exact)
    assert out.dtype == inputs[0].dtype
    assert_close('output', out, expected, out.dtype)
    if out.numel():
        assert out.stride() == inputs[0].stride()
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    grads = torch.autograd.grad(out, inputs, slope.to(out.dtype))
    for i, (ours, grad) in enumerate(zip(grads, torch.autograd.grad(expected, exact, slope.to(out.dtype).double()))):
        assert ours.dtype == inputs[i].dtype
        assert_close(f'gradient of argument {i}', ours, grad, out.dtype)


# More than one block of channels, widths that are no multiple of a program's columns, maps smaller than the kernel.
@pytest.mark.parametrize(
    'shape, kernel_size, layout',
    [
        ((2, 5, 6, 9), 3, CONTIGUOUS),
        ((2, 5, 6, 9), 3, LAST),
        ((1, 9, 3, 2), 3, CONTIGUOUS),
        ((1, 70, 3, 2), 5, LAST),
        ((2, 3, 1, 1), 3, CONTIGUOUS),
        ((2, 3, 1, 1), 3, LAST),
        ((0, 4, 5, 5), 3, CONTIGUOUS),
        ((0, 4, 5, 5), 3, LAST),
        ((1, 3, 4, 3), 7, LAST),
    ],
)
def test_depthwise(shape, kernel_size, layout):
    check(depthwise_conv2d, plain_depthwise, convolution_inputs(shape, kernel_size, layout=layout))


@pytest.mark.parametrize(
    'shape, layout',
    [
        ((2, 5, 6, 9), CONTIGUOUS),
        ((2, 5, 6, 9), LAST),
        ((1, 9, 3, 4), CONTIGUOUS),
        ((1, 70, 3, 4), LAST),
        ((2, 3, 1, 1), LAST),
        ((0, 4, 5, 5), LAST),
    ],
)
def test_dwconv_gelu(shape, layout):
    check(dwconv_gelu, plain_dwconv_gelu, convolution_inputs(shape, 3, layout=layout))


@pytest.mark.parametrize('layout', [CONTIGUOUS, LAST])
@pytest.mark.parametrize('shape', [(2, 12, 6, 9), (1, 80, 13, 30), (2, 6, 1, 1), (0, 4, 5, 5)])
def test_global_context(shape, layout):
    check(global_context, plain_global_context, context_inputs(shape, layout=layout))


@pytest.mark.parametrize('dtype, weight_dtype', [(torch.float16, None), (torch.bfloat16, torch.float32)])
def test_half_precision(dtype, weight_dtype):
    """Weights in the map's dtype, or in float32, as under autocast."""
    kwargs = dict(dtype=dtype, weight_dtype=weight_dtype)
    check(depthwise_conv2d, plain_depthwise, convolution_inputs((2, 5, 3, 5), 5, **kwargs))
    check(dwconv_gelu, plain_dwconv_gelu, convolution_inputs((2, 5, 3, 5), 3, **kwargs))
    check(global_context, plain_global_context, context_inputs((2, 12, 3, 5), **kwargs))


def test_depthwise_and_dwconv_gelu_without_bias():
    x, weight, _ = convolution_inputs((1, 4, 3, 5), 3)
    for fast, plain in ((depthwise_conv2d, plain_depthwise), (dwconv_gelu, plain_dwconv_gelu)):
        check(
            lambda x, weight, fast=fast: fast(x, weight, None),
            lambda x, weight, plain=plain: plain(x, weight, None),
            (x, weight),
        )


def test_depthwise_of_a_strided_map_and_an_expanded_gradient():
    x, weight, bias = convolution_inputs((2, 4, 6, 10), 3)
    x = x.detach()[:, :, ::2, 1::2].requires_grad_()
    out = depthwise_conv2d(x, weight, bias)
    out.sum().backward()
    exact = x.detach().double().requires_grad_()
    expected = plain_depthwise(exact, weight.double(), bias.double())
    expected.sum().backward()
    assert_close('output', out, expected, x.dtype)
    assert_close('gradient', x.grad, exact.grad, x.dtype)


def test_depthwise_computes_only_the_gradients_that_are_needed():
    x, weight, bias = convolution_inputs((1, 4, 3, 5), 3)
    out = depthwise_conv2d(x, weight.detach(), bias.detach())
    out.sum().backward()
    assert x.grad is not None
    out = depthwise_conv2d(x.detach(), weight, bias)
    out.sum().backward()
    assert weight.grad is not None


def test_gelu_of_dwconv_gelu_in_the_tails():
    x = torch.linspace(-12, 12, 121, device=DEVICE).view(1, 1, 1, -1).requires_grad_()
    identity = F.pad(torch.ones(1, 1, 1, 1, device=DEVICE), (1, 1, 1, 1))
    check(lambda x: dwconv_gelu(x, identity, None), F.gelu, (x,))


def test_operations_take_strided_vectors():
    x, weight, _ = convolution_inputs((1, 4, 2, 3), 3)
    check(dwconv_gelu, plain_dwconv_gelu, (x, weight, random(8)[::2].detach().requires_grad_()))
    check(
        global_context,
        plain_global_context,
        (
            x,
            random(4, 1).t().detach().expand(1, 4).requires_grad_(),
            random(1).detach().expand(2).requires_grad_(),
            random(6)[::3].detach().requires_grad_(),
        ),
    )


@pytest.mark.parametrize('offset', [0.0, 30.0])
def test_global_context_does_not_cancel(offset):
    """A map far from 0 has a similarity whose mean is 1000s of times its deviation."""
    x, context, weight, bias = context_inputs((1, 16, 9, 9))
    x = (x.detach() + offset).requires_grad_()
    out = global_context(x, context, weight, bias)
    exact = plain_global_context(*(value.double() for value in (x, context, weight, bias)))
    assert (out - exact).abs().max() < (1e-5 if offset == 0 else 2e-3)


def test_global_context_takes_any_means():
    """Means that are not the map's own: the normalisation still subtracts the true mean of the similarity."""
    x, context, weight, bias = context_inputs((2, 8, 4, 5))
    means = random(2, 8, seed=5)

    def plain(x, means, context, weight, bias):
        heads = x.unflatten(1, (HEADS, -1))
        similarity = (heads * means.unflatten(1, (HEADS, -1))[..., None, None]).sum(2) * heads.shape[2] ** -0.5
        similarity = similarity - similarity.mean((1, 2, 3), keepdim=True)
        similarity = similarity / (similarity.std((1, 2, 3), keepdim=True) + EPS)
        similarity = similarity * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
        return x + (similarity.unsqueeze(2) * context.unflatten(1, (HEADS, -1))[..., None, None]).flatten(1, 2)

    check(
        lambda x, means, context, weight, bias: global_context_add(x, means, context, HEADS, weight, bias, EPS),
        plain,
        (x, means, context, weight, bias),
    )


def test_global_context_of_a_lone_value():
    x, context = random(1, 3, 1, 1), random(1, 3, seed=1)
    weight, bias = random(1), random(1, seed=1)
    out = global_context_add(x, channel_means(x), context, 1, weight, bias, EPS)
    torch.testing.assert_close(out, x + (bias * context)[..., None, None])
    out.sum().backward()
    assert all(value.grad.isfinite().all() for value in (x, context, weight, bias))


def test_autocast_as_a_convolution():
    x, weight, bias = convolution_inputs((1, 4, 3, 5), 3)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = plain_depthwise(x, weight, bias)
        out = depthwise_conv2d(x, weight, bias)
        assert out.dtype == expected.dtype == dwconv_gelu(x, weight, bias).dtype == torch.bfloat16
        assert global_context(x, *context_inputs((1, 4, 3, 5))[1:]).dtype == torch.float32
    assert_close('output', out, expected.double(), out.dtype)
    out.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    'name, inputs',
    [
        ('depthwise_conv2d', convolution_inputs((1, 4, 2, 3), 3)),
        ('dwconv_gelu', convolution_inputs((1, 4, 2, 3), 3)),
        (
            'global_context_add',
            (
                lambda x, context, *rescale: (
                    x,
                    channel_means(x).detach().requires_grad_(),
                    context,
                    HEADS,
                    *rescale,
                    EPS,
                )
            )(*context_inputs((1, 4, 2, 3))),
        ),
    ],
)
def test_operators_are_well_registered(name, inputs):
    library.opcheck(
        getattr(torch.ops.fcvit_mm, name).default,
        inputs,
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'),
    )


class Module(torch.nn.Module):
    """Every kernel once."""

    def __init__(self):
        super().__init__()
        _, weight, bias = convolution_inputs((1, 4, 2, 3), 3)
        self.weight, self.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
        self.rescale = torch.nn.Parameter(torch.ones(HEADS, device=DEVICE))

    def forward(self, x):
        assert support.applies(x)
        x = global_context_add(x, channel_means(x), x.mean((2, 3)), HEADS, self.rescale, self.rescale, EPS)
        return dwconv_gelu(depthwise_conv2d(x, self.weight, self.bias), self.weight, self.bias)


def test_compile_records_the_operators(monkeypatch):
    module, x = Module(), random(2, 4, 2, 3, layout=LAST)
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    monkeypatch.setattr(support, '_usable', {})  # the kernels are tried while the compiler traces
    out, expected = compiled(x), module(x)
    torch.testing.assert_close(out, expected)
    parameters = tuple(module.parameters())
    for ours, grad in zip(torch.autograd.grad(out.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)):
        torch.testing.assert_close(ours, grad)


def test_export_records_the_operators():
    module, x = Module(), random(2, 4, 2, 3).detach()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=2, max=8)},))
    names = {str(node.target) for node in program.graph.nodes}
    assert {f'fcvit_mm.{name}.default' for name in ('depthwise_conv2d', 'dwconv_gelu', 'global_context_add')} <= names
    x = random(3, 4, 2, 3).detach()
    torch.testing.assert_close(program.module()(x), module(x))


def test_kernels_that_do_not_build_are_turned_off(monkeypatch):
    def fail(device):
        raise RuntimeError('ptxas died')

    x = random(1, 4, 2, 3)
    monkeypatch.setattr(support, '_usable', {})
    monkeypatch.setattr(support, '_smoke', fail)
    with pytest.warns(RuntimeWarning, match=f'do not build on {DEVICE}.*RuntimeError: ptxas died.*plain PyTorch'):
        assert not support.applies(x)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not support.applies(x)  # asked once, said once


def test_tries_the_kernels_outside_of_what_the_caller_set_up(monkeypatch):
    monkeypatch.setattr(support, '_usable', {})
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        assert support.applies(torch.rand(1, 4, 2, 3, device=DEVICE))


def test_leaves_double_precision():
    assert not support.applies(torch.rand(1, 4, 2, 3, device=DEVICE, dtype=torch.float64))
