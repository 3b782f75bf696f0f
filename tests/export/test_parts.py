"""The parts of a model that are exported."""

import pytest
import torch
import torch.nn as nn

from fcvit_mm.errors import UserError
from fcvit_mm.export.parts import AdaptiveAvgPool2d, free_of_sizes_, random_images, take_part


@pytest.mark.parametrize('size', [(6, 6), (7, 11), (1, 5), (23, 4)], ids=str)
@pytest.mark.parametrize('output_size', [1, 6, (2, 3)], ids=str)
def test_pooling_is_pytorchs(size, output_size):
    x = random_images((2, 3, *size))
    torch.testing.assert_close(AdaptiveAvgPool2d(output_size)(x), nn.AdaptiveAvgPool2d(output_size)(x))


def test_a_semantic_fpn_is_freed_of_sizes():
    wrappers = pytest.importorskip('mmseg.models.utils.wrappers')
    upsample = wrappers.Upsample(scale_factor=2, mode='bilinear', align_corners=False)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), upsample, nn.AdaptiveAvgPool2d((1, 1)))
    x = random_images((1, 3, 9, 5))
    expected = model[:2](x)
    assert free_of_sizes_(model)[1] is not upsample and isinstance(model[2], nn.AdaptiveAvgPool2d)
    torch.testing.assert_close(model[:2](x), expected)


def test_models_of_other_structure():
    with pytest.raises(UserError, match='Linear has no backbone in model.backbone'):
        take_part(nn.Linear(2, 2), 'classification')
    pytest.importorskip('mmseg')
    cascade = nn.Module()
    cascade.backbone, cascade.decode_head = nn.Identity(), nn.ModuleList()
    with pytest.raises(UserError, match='has a decode_head of ModuleList, expected a single decode head of mmseg'):
        take_part(cascade, 'segmentation')
