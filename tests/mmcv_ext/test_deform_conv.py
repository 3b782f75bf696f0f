"""Deformable convolutions without offsets are convolutions; test_operators.py compares the others with a build."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


@pytest.mark.parametrize('modulated', [False, True])
def test_zero_offsets_give_a_convolution(modulated):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, 5, requires_grad=True, generator=generator)
    weight = torch.randn(3, 4, 3, 3, requires_grad=True, generator=generator)
    offset = torch.zeros(2, 18, 6, 5)
    if modulated:
        found = modulated_deform_conv2d(x, offset, torch.full((2, 9, 6, 5), 0.5), weight, None, 1, 1, 1, 1, 1)
    else:
        found = deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1)
    expected = F.conv2d(x, weight, padding=1) * (0.5 if modulated else 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), (x, weight)) for y in (found, expected)]
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['DeformConv2dPack', 'ModulatedDeformConv2dPack'])
@pytest.mark.parametrize('autocast', [False, True])
def test_bfloat16(kind, autocast):
    """It is computed in float32, because torchvision's kernels lack it."""
    from mmcv import ops

    torch.manual_seed(0)
    convolution = getattr(ops, kind)(4, 3, 3, padding=1).to(torch.float32 if autocast else torch.bfloat16)
    x = torch.randn(2, 4, 6, 5).bfloat16().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        found = convolution(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and convolution.weight.grad.dtype == convolution.weight.dtype
    convolution.float()
    weights = convolution.weight.grad.clone()
    convolution.weight.grad = None
    exact = x.detach().float().requires_grad_()
    expected = convolution(exact)
    expected.square().sum().backward()
    for got, want in (found, expected), (x.grad, exact.grad), (weights, convolution.weight.grad):
        assert (got.float() - want).norm() < 0.03 * want.norm()


def test_offsets_of_a_smaller_map_are_refused():
    from mmcv.ops import modulated_deform_conv2d

    x, weight = torch.randn(1, 2, 8, 8), torch.randn(2, 2, 3, 3)
    offset, mask = torch.zeros(1, 18, 4, 4), torch.ones(1, 9, 4, 4)
    with pytest.raises(RuntimeError, match=r'offset output dims: \(4, 4\) - computed output dims: \(8, 8\)'):
        modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1)


def test_dyhead_trains():
    """DyHead uses the offsets of one level for convolutions of another."""
    pytest.importorskip('mmdet')
    from mmdet.models.necks import DyHead

    torch.manual_seed(0)
    neck = DyHead(in_channels=16, out_channels=16, num_blocks=1)
    maps = [torch.randn(1, 16, *size, requires_grad=True) for size in ((13, 15), (7, 8), (4, 4))]
    outputs = neck(maps)
    assert [output.shape for output in outputs] == [each.shape for each in maps]
    sum(output.square().mean() for output in outputs).backward()
    assert all(each.grad.isfinite().all() and each.grad.any() for each in maps)
