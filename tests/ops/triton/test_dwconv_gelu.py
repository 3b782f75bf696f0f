"""The kernel of depth-wise convolution and GELU; common tests of all implementations: test_implementations.py."""

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import CONTIGUOUS, DEVICE, LAST, check, convolution_inputs, launches_kernels, random
from torch import library

from fcvit_mm import ops
from fcvit_mm.ops.triton import dwconv_gelu

reference = ops.dwconv_gelu.reference
pytestmark = launches_kernels


@pytest.mark.parametrize('shape, layout', [((2, 3, 1, 1), CONTIGUOUS), ((1, 70, 1, 4), LAST)])
def test_values_and_gradients(shape, layout):
    check(dwconv_gelu, reference, convolution_inputs(shape, 3, layout=layout))


def test_without_bias():
    x, weight, _ = convolution_inputs((1, 4, 3, 5), 3)
    check(lambda x, weight: dwconv_gelu(x, weight, None), lambda x, weight: reference(x, weight, None), (x, weight))


def test_weights_in_float32_beside_a_map_in_bfloat16():
    inputs = convolution_inputs((2, 5, 3, 5), 3, dtype=torch.bfloat16, weight_dtype=torch.float32)
    check(dwconv_gelu, reference, inputs)


def test_gelu_of_large_values():
    x = torch.linspace(-9, 9, 21, device=DEVICE).view(1, 1, 3, 7).requires_grad_()
    identity = F.pad(torch.ones(1, 1, 1, 1, device=DEVICE), (1, 1, 1, 1))
    check(lambda x: dwconv_gelu(x, identity, None), F.gelu, (x,))


def test_takes_a_strided_bias():
    x, weight, _ = convolution_inputs((1, 4, 2, 2), 3)
    check(dwconv_gelu, reference, (x, weight, random(8)[::2].detach().requires_grad_()))


def test_autocast_as_a_convolution():
    with torch.autocast(DEVICE, torch.bfloat16):
        assert dwconv_gelu(*convolution_inputs((1, 4, 3, 5), 3)).dtype == torch.bfloat16


def test_operator_is_well_registered():
    library.opcheck(
        torch.ops.fcvit_mm.dwconv_gelu.default,
        convolution_inputs((1, 4, 2, 2), 3),
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'),
    )
