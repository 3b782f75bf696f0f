"""Pooling of regions: values and gradients of the definitions."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def test_roi_pool_takes_the_maximum_of_each_bin():
    from mmcv.ops import roi_pool

    x = torch.randn(2, 3, 8, 9, requires_grad=True, generator=torch.Generator().manual_seed(0))
    # The second covers 4x4 values from (2, 1) of the second image, the last none.
    regions = torch.tensor([[0.0, 0, 0, 8, 7], [1, 2, 1, 5, 4], [0, 5, 5, 3, 3]])
    found = roi_pool(x, regions, (2, 2), 1.0)
    inside = x[1, :, 1:5, 2:6]
    expected = torch.stack([inside[:, :2, :2], inside[:, :2, 2:], inside[:, 2:, :2], inside[:, 2:, 2:]], 1)
    torch.testing.assert_close(found[1].flatten(1), expected.amax((2, 3)))
    torch.testing.assert_close(found[0], F.adaptive_max_pool2d(x[0], 2))
    assert not found[2].any()
    (gradient,) = torch.autograd.grad(found[1].sum(), x)
    assert gradient.sum() == 12 and gradient[1, :, 1:5, 2:6].sum() == 12


@pytest.mark.parametrize('ratio', [0, 2])
def test_deformable_roi_pooling_without_offsets_is_roi_align(ratio):
    from mmcv.ops import deform_roi_pool, roi_align

    x = torch.randn(2, 3, 12, 11, requires_grad=True, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[0.0, 3, 5, 20, 33], [1, 10, 2, 41, 44], [0, 7, 7, 3, 3]])
    found = [deform_roi_pool(x, regions, offset, (3, 2), 0.25, ratio) for offset in (None, torch.zeros(3, 2, 3, 2))]
    expected = roi_align(x, regions[:2], (3, 2), 0.25, ratio, 'avg', True)
    for each in found:
        torch.testing.assert_close(each[:2], expected)
    grads = [torch.autograd.grad(y[:2].square().sum(), x)[0] for y in (found[1], expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('autocast', [False, True])
def test_roi_align_in_bfloat16(autocast):
    """It is computed in float32, because torchvision's kernels lack it."""
    from mmcv.ops import roi_align

    x = torch.randn(2, 3, 12, 11, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    regions = torch.tensor([[0.0, 3, 5, 20, 33], [1, 10, 2, 41, 44]])
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        found = roi_align(x, regions, (3, 2), 0.25, 2, 'avg', True)
    exact = x.detach().float().requires_grad_()
    expected = roi_align(exact, regions, (3, 2), 0.25, 2, 'avg', True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
    found.float().sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad.float(), exact.grad, rtol=0.01, atol=0.01)


def test_offsets_move_the_bins_of_deformable_roi_pooling():
    from mmcv.ops import deform_roi_pool, roi_align

    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    region = torch.tensor([[0.0, 4, 4, 8, 8]])
    offset = torch.zeros(1, 2, 1, 1)
    offset[0, :, 0, 0] = torch.tensor([5.0, -2.5])  # of 0.1 of the sides: 2 to the right, 1 up
    moved = torch.tensor([[0.0, 6, 3, 10, 7]])
    offset.requires_grad_()
    found = deform_roi_pool(x, region, offset, 1, 1.0, 2, 0.1)
    torch.testing.assert_close(found, roi_align(x, moved, 1, 1.0, 2, 'avg', True))
    step = 1e-2
    slope = torch.autograd.grad(found.sum(), offset)[0].flatten()
    for index in range(2):
        shifted = offset.detach().clone()
        shifted.view(-1)[index] += step
        change = (deform_roi_pool(x, region, shifted, 1, 1.0, 2, 0.1) - found).sum() / step
        torch.testing.assert_close(change.detach(), slope[index], rtol=0.05, atol=1e-3)


def test_channels_last_maps_are_read_correctly():
    """torchvision's kernel reads any memory as if it were contiguous."""
    from mmcv.ops import roi_align

    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[0.0, 1, 1, 6, 6]])
    torch.testing.assert_close(roi_align(x.to(memory_format=torch.channels_last), regions, 2), roi_align(x, regions, 2))


@pytest.mark.parametrize('ratio', [0, 2])
def test_rotated_regions_without_a_rotation(ratio):
    from mmcv.ops import roi_align, roi_align_rotated

    x = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[0, 1, 2, 7.5, 6], [1, -2, 0, 4, 12]])
    upright = torch.cat(
        (corners[:, :1], (corners[:, 1:3] + corners[:, 3:]) / 2, corners[:, 3:] - corners[:, 1:3], torch.zeros(2, 1)), 1
    )
    expected = roi_align(x, corners, (3, 2), 1.0, ratio, 'avg', True)
    torch.testing.assert_close(roi_align_rotated(x, upright, (3, 2), 1.0, ratio, True, False), expected)
