"""CARAFE is a weighted sum over windows."""

import pytest
import torch
import torch.nn.functional as F

from fcvit_mm.mmcv_ext import operators

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


@pytest.mark.parametrize('naive', [False, True])
def test_carafe_is_a_weighted_sum_over_windows(naive, monkeypatch):
    from mmcv.ops import carafe

    x = torch.randn(2, 4, 3, 5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(2, 2 * 9, 6, 10, requires_grad=True, generator=torch.Generator().manual_seed(1))
    if naive:
        inputs = [x.detach(), masks.detach()]
        found = x.new_empty(2, 4, 6, 10)
        operators.carafe_naive_forward(*inputs, found, 3, 2, 2)
    else:
        found = carafe(x, masks, 3, 2, 2)
    padded = F.pad(x, (1, 1, 1, 1))
    for image, channel, row, column in ((0, 0, 0, 0), (1, 3, 5, 9), (1, 2, 3, 4)):
        window = padded[image, channel, row // 2 : row // 2 + 3, column // 2 : column // 2 + 3].flatten()
        weights = masks[image, channel // 2 * 9 : channel // 2 * 9 + 9, row, column]
        torch.testing.assert_close(found[image, channel, row, column], window @ weights)
    if not naive:
        found.sum().backward()
        assert x.grad.abs().sum() > 0 and masks.grad.abs().sum() > 0
