"""The norm's kernels; the common tests of all implementations are in test_implementations.py."""

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import DEVICE, LAST, check, launches_kernels, random
from torch import library

from fcvit_mm.ops.triton import group_norm

pytestmark = launches_kernels


def ours(x, weight=None, bias=None):
    return group_norm(x, weight, bias, 1e-5)


def reference(x, weight=None, bias=None):
    return F.group_norm(x, 1, weight, bias, 1e-5)


# One tile, several tiles with a rest in several splits; channels that fill no block.
@pytest.mark.parametrize('shape, dtype', [((2, 5, 3, 4), torch.bfloat16), ((1, 70, 11, 13), torch.float32)])
def test_values_and_gradients(shape, dtype):
    x = random(*shape, dtype=dtype, layout=LAST)
    check(ours, reference, (x, random(shape[1], dtype=dtype), random(shape[1], dtype=dtype, seed=1)))
    check(ours, reference, (x,))


def test_small_variance_around_a_large_mean():
    """Computed from squares of the values, the variance would be lost to rounding."""
    x = (random(2, 8, 9, 9, layout=LAST).detach() * 0.01 + 100).contiguous(memory_format=LAST)
    expected = reference(x.double())
    assert (ours(x) - expected).abs().max() < 2e-3  # the values' own rounding, by the small deviation
    assert ours(x).std() > 0.9


def test_autocast_as_pytorch():
    x = random(1, 4, 3, 5, dtype=torch.bfloat16, layout=LAST)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert ours(x, random(4), random(4)).dtype == torch.float32


def test_operators_are_well_registered():
    x, weight = random(1, 4, 2, 3, layout=LAST), random(4)
    library.opcheck(
        torch.ops.fcvit_mm.group_norm.default,
        (x, weight, weight, 1e-5, None),
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'),
    )
