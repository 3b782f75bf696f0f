"""The depth-wise convolution; the common tests of all operations are in test_implementations.py."""

import pytest
import torch
import torch.nn.functional as F

from fcvit_mm.ops import depthwise_conv2d
from fcvit_mm.ops.depthwise_conv import check_odd

X = torch.ones(2, 16, 4, 4)


@pytest.mark.parametrize('size', [1, 5])
def test_each_channel_has_its_own_kernel(size):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 6, 7), torch.randn(3, 1, size, size), torch.randn(3)
    for i, channel in enumerate(x.split(1, 1)):
        expected = F.conv2d(channel, weight[i : i + 1], bias[i : i + 1], padding=size // 2)
        torch.testing.assert_close(depthwise_conv2d(x, weight, bias)[:, i : i + 1], expected)
    torch.testing.assert_close(depthwise_conv2d(x, weight), depthwise_conv2d(x, weight, bias * 0))


@pytest.mark.parametrize(
    'weight, message',
    [
        (
            torch.ones(8, 1, 3, 3),
            r'depthwise_conv2d: weight has the shape \(8, 1, 3, 3\), but x of shape .* takes \(16, 1, 3, 3\)',
        ),
        (torch.ones(16, 1, 3, 5), r'takes \(16, 1, 5, 5\)'),
        (torch.ones(16, 1, 4, 4), 'kernel of 4x4, expected an odd size'),
    ],
)
def test_refuses_invalid_arguments(weight, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(X, weight)


def test_check_odd():
    check_odd('mix', 3)
    with pytest.raises(ValueError, match='mix: weight has a kernel of 2x2, expected an odd size'):
        check_odd('mix', 2)
