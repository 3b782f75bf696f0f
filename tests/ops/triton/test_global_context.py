"""The kernels of the global context; the common tests of all implementations are in test_implementations.py."""

import pytest
import torch
from kernel_cases import (
    CONTIGUOUS,
    DEVICE,
    EPS,
    HEADS,
    LAST,
    check,
    context_inputs,
    global_context,
    launches_kernels,
    random,
    reference_global_context,
)
from torch import library

from fcvit_mm import ops
from fcvit_mm.ops import channel_means
from fcvit_mm.ops.triton import add_global_context

pytestmark = launches_kernels


# More than one step of positions, heads and channels that are no powers of two.
@pytest.mark.parametrize('layout', [CONTIGUOUS, LAST])
@pytest.mark.parametrize('shape', [(2, 12, 6, 9), (1, 80, 13, 30), (2, 6, 1, 1)])
def test_values_and_gradients(shape, layout):
    check(global_context, reference_global_context, context_inputs(shape, layout=layout))


def test_weights_in_float32_beside_a_map_in_bfloat16():
    inputs = context_inputs((2, 12, 3, 5), dtype=torch.bfloat16, weight_dtype=torch.float32)
    check(global_context, reference_global_context, inputs)


def test_takes_strided_vectors():
    inputs = (
        random(1, 4, 2, 3, layout=LAST),
        random(4, 1).t().detach().expand(1, 4).requires_grad_(),
        random(1).detach().expand(2).requires_grad_(),
        random(6)[::3].detach().requires_grad_(),
    )
    check(global_context, reference_global_context, inputs)


@pytest.mark.parametrize('offset', [0.0, 30.0])
def test_no_cancellation_far_from_zero(offset):
    """A map far from 0 has a similarity whose mean is 1000s of times its deviation."""
    x, context, weight, bias = context_inputs((1, 16, 9, 9))
    x = (x.detach() + offset).requires_grad_()
    out = global_context(x, context, weight, bias)
    exact = reference_global_context(*(value.double() for value in (x, context, weight, bias)))
    assert (out - exact).abs().max() < (1e-5 if offset == 0 else 2e-3)


def test_accepts_any_means():
    """Means that are not the map's own: the normalization still subtracts the true mean of the similarity."""
    x, context, weight, bias = context_inputs((2, 8, 4, 5))

    def by(function):
        return lambda x, means, context, weight, bias: function(x, means, context, HEADS, weight, bias, EPS)

    inputs = (x, random(2, 8, seed=5), context, weight, bias)
    check(by(add_global_context), by(ops.add_global_context.reference), inputs)


def test_single_value():
    x, context = random(1, 3, 1, 1), random(1, 3, seed=1)
    weight, bias = random(1), random(1, seed=1)
    out = add_global_context(x, channel_means(x), context, 1, weight, bias, EPS)
    torch.testing.assert_close(out, x + (bias * context)[..., None, None])
    out.sum().backward()
    assert all(value.grad.isfinite().all() for value in (x, context, weight, bias))


def test_autocast_leaves_it_in_float32():
    with torch.autocast(DEVICE, torch.bfloat16):
        assert global_context(*context_inputs((1, 4, 3, 5))).dtype == torch.float32


def test_operator_is_well_registered():
    x, context, *rescale = context_inputs((1, 4, 2, 3))
    library.opcheck(
        torch.ops.fcvit_mm.add_global_context.default,
        (x, channel_means(x).detach().requires_grad_(), context, HEADS, *rescale, EPS),
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'),
    )
