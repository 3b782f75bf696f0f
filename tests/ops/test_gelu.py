"""GELU in place; the common tests of all operations are in test_implementations.py."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from fcvit_mm.models.layers import Conv2d, activated
from fcvit_mm.ops import gelu_


def test_does_not_overwrite_what_autograd_needs():
    x = torch.randn(1, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    before = x.detach().clone()
    gelu_(x).sum().backward()
    assert torch.equal(x.detach(), before)


def test_overwrites_a_map_in_channels_last_on_a_cpu():
    x = torch.randn(1, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    expected = F.gelu(x)
    with torch.no_grad():
        assert gelu_(x).data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, expected)


def test_hooks_get_the_output_of_the_convolution():
    """A tensor that a feature extractor holds must not be overwritten by the GELU after it."""
    conv = Conv2d(4, 4, 1)
    x = torch.randn(1, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    seen = []
    with torch.no_grad():
        expected = conv(x).clone()
        handle = conv.register_forward_hook(lambda module, args, output: seen.append(output))
        with_hook = activated(conv, nn.GELU(), x)
        handle.remove()
        torch.testing.assert_close(seen[0], expected)
        torch.testing.assert_close(activated(conv, nn.GELU(), x), with_hook)


@pytest.mark.parametrize(
    'x, error, message',
    [
        ([1.0], TypeError, 'gelu_: x is list, expected a floating-point tensor'),
        (torch.ones(2, 16, 4, 4).int(), TypeError, 'gelu_: x is torch.int32'),
        (torch.ones(16, 4, 4), ValueError, r'gelu_: x has the shape \(16, 4, 4\), expected four dimensions'),
    ],
)
def test_refuses_invalid_arguments(x, error, message):
    with pytest.raises(error, match=message):
        gelu_(x)
