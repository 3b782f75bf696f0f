"""Inputs of the Triton kernels, and comparison of values and gradients with the references in float64.

The tests in ``tests/ops/triton`` that launch kernels run on a GPU, or with ``TRITON_INTERPRET=1``, where
``test_interpreter.py`` starts them.
"""

from typing import Any, Callable, Optional, Sequence, Tuple

import pytest
import torch
from torch import Tensor

from fcvit_mm.ops import add_global_context, channel_means
from fcvit_mm.ops.triton import add_global_context as triton_global_context
from fcvit_mm.ops.triton import available, support

DEVICE = 'cpu' if support.INTERPRETED else 'cuda'
EPS, HEADS = 1e-5, 2
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
#: Largest difference, as a share of the largest value: two roundings of the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

launches_kernels = pytest.mark.skipif(
    not (available() and (support.INTERPRETED or torch.cuda.is_available())),
    reason='needs a GPU or TRITON_INTERPRET=1: test_interpreter.py runs it so',
)


def random(*shape: int, dtype: torch.dtype = torch.float32, layout: Any = CONTIGUOUS, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE, dtype)
    return (x.contiguous(memory_format=layout) if x.dim() == 4 else x).requires_grad_()


def convolution_inputs(
    shape: Sequence[int],
    kernel_size: int,
    dtype: torch.dtype = torch.float32,
    layout: Any = LAST,
    weight_dtype: Optional[torch.dtype] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    weight_dtype = weight_dtype or dtype
    return (
        random(*shape, dtype=dtype, layout=layout),
        random(shape[1], 1, kernel_size, kernel_size, dtype=weight_dtype),
        random(shape[1], dtype=weight_dtype),
    )


def context_inputs(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    layout: Any = LAST,
    weight_dtype: Optional[torch.dtype] = None,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    weight_dtype = weight_dtype or dtype
    return (
        random(*shape, dtype=dtype, layout=layout),
        random(*shape[:2], dtype=weight_dtype, seed=1),
        random(HEADS, dtype=weight_dtype, seed=2),
        random(HEADS, dtype=weight_dtype, seed=3),
    )


def global_context(x: Tensor, context: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return triton_global_context(x, channel_means(x), context, HEADS, weight, bias, EPS)


def reference_global_context(x: Tensor, context: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return add_global_context.reference(x, channel_means(x), context, HEADS, weight, bias, EPS)


def assert_close(name: str, ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert ours.shape == expected.shape, name
    if expected.numel():
        error = (ours.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error <= TOLERANCE[dtype], f'{name} is {error:.1e} off'


def check(function: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Compare values and gradients with those of the reference in double precision."""
    exact = [value.detach().double().requires_grad_() for value in inputs]
    out, expected = function(*inputs), reference(*exact)
    assert out.dtype == inputs[0].dtype
    assert_close('output', out, expected, out.dtype)
    if out.numel():
        assert out.stride() == inputs[0].stride()
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    grads = torch.autograd.grad(out, inputs, slope.to(out.dtype))
    for i, (ours, grad) in enumerate(zip(grads, torch.autograd.grad(expected, exact, slope.to(out.dtype).double()))):
        assert ours.dtype == inputs[i].dtype
        assert_close(f'gradient of argument {i}', ours, grad, out.dtype)
