"""The scaled residual's kernels; the common tests of all implementations are in test_implementations.py."""

import pytest
import torch
from kernel_cases import DEVICE, LAST, check, launches_kernels, random
from torch import library

from fcvit_mm import ops
from fcvit_mm.ops.triton import add_scaled

pytestmark = launches_kernels


@pytest.mark.parametrize('shape, dtype', [((2, 5, 3, 4), torch.bfloat16), ((3, 70, 5, 7), torch.float32)])
def test_factors_of_single_images(shape, dtype):
    x, branch = random(*shape, dtype=dtype, layout=LAST), random(*shape, dtype=dtype, layout=LAST, seed=1)
    keep = torch.tensor([0.0, 1.25, 2.0][: shape[0]], device=DEVICE, dtype=dtype)

    def reference(x, branch, scale=None):
        return ops.add_scaled.reference(x, branch, scale, keep.to(x.dtype))

    check(lambda *args: add_scaled(*args, keep), reference, (x, branch, random(shape[1], dtype=dtype)))
    check(lambda x, branch: add_scaled(x, branch, None, keep), reference, (x, branch))


def test_branch_in_half_precision_beside_a_map_in_float32():
    """As under autocast: the residual stays in float32."""
    x, scale = random(1, 4, 3, 5, layout=LAST), random(4)
    branch = random(1, 4, 3, 5, dtype=torch.bfloat16, layout=LAST, seed=1)
    out = add_scaled(x, branch, scale)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, ops.add_scaled.reference(x, branch, scale))
    grads = torch.autograd.grad(out.sum(), (x, branch, scale))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16, torch.float32]


def test_operators_are_well_registered():
    x, scale = random(1, 4, 2, 3, layout=LAST), random(4)
    library.opcheck(
        torch.ops.fcvit_mm.add_scaled.default,
        (x, x.detach(), scale, None),
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'),
    )
