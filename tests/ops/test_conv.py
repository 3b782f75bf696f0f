"""The convolution; what all operations are asked is in test_implementations.py."""

import pytest
import torch
import torch.nn.functional as F

from fcvit_mm.ops import conv2d

X = torch.ones(2, 16, 4, 4)


@pytest.mark.parametrize('stride, padding, groups', [(1, 0, 1), (2, 1, 4), ((2, 1), (0, 1), 16)])
def test_stride_padding_and_groups(stride, padding, groups):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 16, 7, 5), torch.randn(16, 16 // groups, 3, 3), torch.randn(16)
    expected = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    torch.testing.assert_close(conv2d(x, weight, bias, stride, padding, groups), expected)


@pytest.mark.parametrize(
    'args, message',
    [
        (
            (torch.ones(8, 12, 1, 1),),
            r'conv2d: weight has the shape \(8, 12, 1, 1\), but x of shape \(2, 16, 4, 4\) takes \(8, 16, 1, 1\)',
        ),
        ((torch.ones(8, 16, 1, 1), torch.ones(9)), r'bias has the shape \(9,\).*\(8,\)'),
        ((torch.ones(8, 16, 1, 1), None, 1, 0, 4), r'takes \(8, 4, 1, 1\)'),
    ],
)
def test_refuses_what_does_not_fit(args, message):
    with pytest.raises(ValueError, match=message):
        conv2d(X, *args)
