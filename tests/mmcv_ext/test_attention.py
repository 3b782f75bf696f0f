"""Deformable attention has the values and gradients of mmcv's reference."""

import pytest
import torch

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def test_deformable_attention_agrees_with_the_reference():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[4, 3], [2, 2]])
    starts = torch.tensor([0, 12])
    value = torch.randn(2, 16, 2, 4, requires_grad=True, generator=generator)
    places = torch.rand(2, 5, 2, 2, 3, 2, requires_grad=True, generator=generator)
    weights = torch.rand(2, 5, 2, 2, 3, requires_grad=True, generator=generator)
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(x.square().sum(), (value, places, weights)) for x in (found, expected)]
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want)
