"""Masked convolution is a convolution at chosen positions."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def test_masked_convolution_is_a_convolution_where_the_mask_is_set():
    from mmcv.ops import MaskedConv2d

    torch.manual_seed(0)
    convolution = MaskedConv2d(3, 5, 3, padding=1)
    x, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.5
    torch.testing.assert_close(
        convolution(x, mask), F.conv2d(x, convolution.weight, convolution.bias, padding=1) * mask
    )
