"""RoIAlign as sums of rows agrees with torchvision and mmcv."""

import pytest
import torch
from torchvision.ops import roi_align

from fcvit_mm.inference.roi_align import RoIAlign, roi_align_rows
from fcvit_mm.ops import use_ops


def maps(channels=6):
    torch.manual_seed(0)
    return torch.randn(2, channels, 20, 31).contiguous(memory_format=torch.channels_last)


def boxes(count=120):
    """Return regions of 1 to 200 pixels, some of them outside of the map, empty or inverted."""
    torch.manual_seed(1)
    centres, sides = torch.rand(count, 2) * 150 - 20, torch.exp(torch.randn(count, 2) + 2.6)
    rois = torch.cat((torch.randint(0, 2, (count, 1)).float(), centres - sides / 2, centres + sides / 2), 1)
    rois[0, 3:] = rois[0, 1:3]
    rois[1, 3:] -= 300
    rois[2, 1:] = torch.tensor([-90.0, -90.0, -70.0, -70.0])
    rois[3, 1:] = torch.tensor([124.0, 80.0, 400.0, 300.0])
    return rois


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2, 3])
def test_values_agree_with_roi_align(ratio, aligned, monkeypatch):
    monkeypatch.setattr('fcvit_mm.inference.roi_align.REGIONS', 50)
    x, rois = maps(), boxes()
    for scale in (0.25, 1 / 32):
        expected = roi_align(x, rois, (7, 5), scale, ratio, aligned)
        got = roi_align_rows(x, rois, (7, 5), scale, ratio, aligned)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert got.is_contiguous(memory_format=torch.channels_last)
    assert roi_align_rows(x, rois[:0], (7, 5), scale, ratio, aligned).shape == (0, 6, 7, 5)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """As under autocast: maps in half precision, regions in float32. torchvision does not support bfloat16."""
    x, rois, layer = maps().to(dtype), boxes(), RoIAlign((4, 4), 0.25, 0)
    got = layer(x, rois)
    assert got.dtype == dtype
    assert torch.equal(got, roi_align_rows(x.float(), rois, (4, 4), 0.25, 0, True).to(dtype))


def test_layer_agrees_with_roi_align(monkeypatch):
    x, rois, layer = maps(), boxes(), RoIAlign((4, 4), 0.25, 0)
    expected = roi_align(x, rois, (4, 4), 0.25, 0, True)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, rois), expected, rtol=1e-5, atol=1e-5)
        assert not torch.equal(layer(x, rois), expected)  # another order of sums

        def refuse(*_):
            raise AssertionError('by rows')

        monkeypatch.setattr('fcvit_mm.inference.roi_align.roi_align_rows', refuse)
        assert torch.equal(layer(x.contiguous(), rois), expected)
        with use_ops('reference'):
            assert torch.equal(layer(x, rois), expected)
        torch.testing.assert_close(layer(x.double(), rois.double()), expected.double(), rtol=1e-5, atol=1e-5)
    wanted = x.clone().requires_grad_()
    layer(wanted, rois).sum().backward()
    assert wanted.grad.abs().sum() > 0
