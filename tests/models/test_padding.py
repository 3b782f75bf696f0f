"""Maps padded to multiples, and rearranged for dilated operations."""

import pytest
import torch
import torch.nn.functional as F

from fcvit_mm.models.padding import batch_to_space, pad_to_multiple, space_to_batch, up_to_multiple


@pytest.mark.parametrize('side, divisor, expected', [(1, 7, 7), (7, 7, 7), (8, 7, 14), (4, 2, 4)])
def test_padding_to_a_multiple(side, divisor, expected):
    assert up_to_multiple(side, divisor) == expected
    x = torch.ones(1, 1, side, 2 * divisor)
    padded = pad_to_multiple(x, divisor)
    assert padded.shape == (1, 1, expected, 2 * divisor) and padded.sum() == x.sum()
    assert torch.equal(padded[:, :, :side], x)


def test_dilated_convolution_by_space_to_batch():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 6, 9), torch.randn(4, 1, 3, 3)
    expected = F.conv2d(x, weight, padding=3, dilation=3, groups=4)
    phases = F.conv2d(space_to_batch(x, 3), weight, padding=1, groups=4)
    torch.testing.assert_close(batch_to_space(phases, 3), expected)


def test_space_to_batch_round_trip():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    phases = space_to_batch(x, 2)
    assert phases.shape == (8, 3, 2, 3) and torch.equal(phases[5], x[1, :, 0::2, 1::2])
    assert torch.equal(batch_to_space(phases, 2), x) and space_to_batch(x, 1) is x is batch_to_space(x, 1)
