"""Depth-wise convolution and GELU; the common tests of all operations are in test_implementations.py."""

import pytest
import torch
import torch.nn.functional as F

from fcvit_mm.ops import depthwise_conv2d, dwconv_gelu

X = torch.ones(2, 16, 4, 4)


def test_is_gelu_of_the_convolution():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 5, 4), torch.randn(6, 1, 3, 3), torch.randn(6)
    torch.testing.assert_close(dwconv_gelu(x, weight, bias), F.gelu(depthwise_conv2d(x, weight, bias)))
    torch.testing.assert_close(dwconv_gelu(x, weight), dwconv_gelu(x, weight, bias * 0))


@pytest.mark.parametrize(
    'weight, error, message',
    [
        (
            torch.ones(16, 1, 3, 3).double(),
            TypeError,
            r'dwconv_gelu: weight is torch.float64, but x is torch.float32: .*\.to\(dtype\)',
        ),
        (torch.ones(16, 1, 3, 3, device='meta'), ValueError, 'weight is on meta, but x is on cpu'),
        (torch.ones(16, 1, 2, 2), ValueError, 'dwconv_gelu: weight has a kernel of 2x2, expected an odd size'),
    ],
)
def test_refuses_invalid_arguments(weight, error, message):
    with pytest.raises(error, match=message):
        dwconv_gelu(X, weight)
