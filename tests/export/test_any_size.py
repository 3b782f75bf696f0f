"""Modules that can be exported for any size agree with the original modules."""

import pytest
import torch
import torch.nn as nn

from fcvit_mm.export.any_size import AdaptiveAvgPool2d, replace_fixed_sizes_
from fcvit_mm.export.parts import random_images


@pytest.mark.parametrize('size', [(6, 6), (7, 11), (1, 5), (23, 4)], ids=str)
@pytest.mark.parametrize('output_size', [1, 6, (2, 3)], ids=str)
def test_pooling_agrees_with_pytorch(size, output_size):
    x = random_images((2, 3, *size))
    torch.testing.assert_close(AdaptiveAvgPool2d(output_size)(x), nn.AdaptiveAvgPool2d(output_size)(x))


def test_upsampling_of_semantic_fpn_is_replaced():
    wrappers = pytest.importorskip('mmseg.models.utils.wrappers')
    upsample = wrappers.Upsample(scale_factor=2, mode='bilinear', align_corners=False)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), upsample, nn.AdaptiveAvgPool2d((1, 1)))
    x = random_images((1, 3, 9, 5))
    expected = model[:2](x)
    assert replace_fixed_sizes_(model)[1] is not upsample and isinstance(model[2], nn.AdaptiveAvgPool2d)
    torch.testing.assert_close(model[:2](x), expected)
