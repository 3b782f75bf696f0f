"""Layers that the networks share."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from fcvit_mm.models import layers
from fcvit_mm.models.caches import CachedWeight
from fcvit_mm.models.layers import (
    Conv2d,
    DropPath,
    GroupNorm1,
    LayerNorm2d,
    activated,
    init_weights_,
    may_bypass,
    residual,
)
from fcvit_mm.ops import conv, native, use_ops


@pytest.mark.parametrize(
    'options',
    [
        dict(groups=6, padding=1),
        dict(padding=1),
        dict(stride=2),
        dict(groups=2),
        dict(groups=6, kernel_size=4, padding=2),
        dict(groups=6, kernel_size=(3, 5), padding=(1, 2)),
        dict(groups=6, padding='same'),
    ],
    ids=str,
)
@torch.no_grad()
def test_convolution_agrees_with_torch(options):
    torch.manual_seed(0)
    conv, x = Conv2d(6, 6, **{'kernel_size': 3, **options}), torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(conv(x), nn.Conv2d.forward(conv, x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_norms_agree_with_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 5)
    last = x.permute(0, 2, 3, 1)
    torch.testing.assert_close(LayerNorm2d(6)(x), F.layer_norm(last, (6,)).permute(0, 3, 1, 2))
    flat = x.flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(GroupNorm1(6)(x), expected.view_as(x))


def test_group_norm_after_frozen_layers_in_channels_last():
    norm = GroupNorm1(8)
    norm(torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert norm.weight.grad.isfinite().all()


def test_layers_with_hooks_are_called():
    conv = Conv2d(3, 3, 1)
    assert may_bypass(conv) and may_bypass(conv, nn.Linear(2, 2)) and not may_bypass(nn.Conv2d(3, 3, 1))
    seen = []
    handle = conv.register_forward_hook(lambda module, args, output: seen.append(output))
    assert not may_bypass(conv)
    x = torch.randn(1, 3, 2, 2)
    y = activated(conv, nn.GELU(), x)
    torch.testing.assert_close(F.gelu(seen[0]), y)
    handle.remove()
    assert may_bypass(conv)


def test_initial_weights():
    torch.manual_seed(0)
    conv, linear, norm = nn.Conv2d(64, 64, 3, groups=2), nn.Linear(64, 64), nn.GroupNorm(1, 4)
    nn.init.zeros_(norm.weight)
    for module in (conv, linear, norm, nn.ReLU()):
        init_weights_(module)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64 / 2)) ** 0.5, rel=0.05)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert norm.weight.eq(1).all() and not conv.bias.any() and not linear.bias.any()


def test_parameters_are_counted():
    assert layers.count_parameters(nn.BatchNorm2d(5).requires_grad_(False)) == 10


def test_drop_path_scales_in_float32_under_autocast():
    """With a branch in bfloat16 and a layer scale in float32, 1 / 0.9 is not rounded to bfloat16."""
    drop_path = DropPath(0.1).train()
    x, branch = torch.zeros(64, 2, 1, 1), torch.ones(64, 2, 1, 1, dtype=torch.bfloat16)
    torch.manual_seed(0)
    out = residual(x, branch, torch.ones(2), drop_path)
    torch.manual_seed(0)
    expected = drop_path(branch * torch.ones(2)[:, None, None])
    assert out.dtype == torch.float32 and torch.equal(out, expected)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1.0).div(0.9).item()}


def test_replaced_or_hooked_drop_path_is_called():
    x, branch = torch.zeros(2, 2, 1, 1), torch.ones(2, 2, 1, 1)
    hooked = DropPath(0.0)
    hooked.register_forward_hook(lambda module, args, output: 3 * output)
    assert torch.equal(residual(x, branch, torch.full((2,), 2.0), hooked), 6 * branch)
    assert torch.equal(residual(x, branch, None, torch.nn.Identity()), branch)


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')
@pytest.mark.parametrize('bias', [True, False])
def test_linear_layers_by_compiled_kernels(monkeypatch, bias):
    """Any leading sizes and strides; PyTorch's linear layer in training, in other dtypes and where it is faster."""
    calls = []
    pointwise = native.pointwise_conv2d
    monkeypatch.setattr(native, 'pointwise_conv2d', lambda *args: calls.append(args) or pointwise(*args))
    monkeypatch.setattr(layers.Linear, 'is_faster', lambda self, x: True)
    torch.manual_seed(0)
    layer = layers.Linear(70, 33, bias=bias)
    expected = nn.Linear(70, 33, bias=bias)
    expected.load_state_dict(layer.state_dict())
    inputs = [torch.randn(5, 70), torch.randn(2, 3, 70), torch.randn(70, 6).t(), torch.randn(1, 140)[:, ::2]]
    with torch.no_grad():
        for x in (*inputs, torch.randn(0, 70), torch.randn(2, 0, 70)):
            torch.testing.assert_close(layer(x), expected(x), rtol=1e-5, atol=1e-5)
        assert len(calls) == len(inputs)
        calls.clear()
        assert torch.equal(layer(inputs[0][0]), expected(inputs[0][0]))
        with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
            layer(torch.ones(2, 69))
        with torch.autocast('cpu', torch.bfloat16):
            assert layer(inputs[0]).dtype == torch.bfloat16
        with use_ops('reference'):
            assert torch.equal(layer(inputs[0]), expected(inputs[0]))
        torch.testing.assert_close(torch.func.vmap(layer)(inputs[1]), expected(inputs[1]))
        torch.testing.assert_close(torch.jit.trace(layer, inputs[0])(torch.ones(3, 70)), expected(torch.ones(3, 70)))
        assert layers.Linear(70, 33).double()(inputs[0].double()).dtype == torch.float64
    calls.clear()
    layer(inputs[0]).sum().backward()
    assert layer.weight.grad is not None and not calls


@pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')
def test_convolutions_of_few_positions_pack_their_weight_once(monkeypatch):
    monkeypatch.setattr(conv, 'MANY_WEIGHTS', 1)
    packed = []
    pack = native.pack
    monkeypatch.setattr(native, 'pack', lambda weight: packed.append(weight) or pack(weight))
    torch.manual_seed(0)
    layer = Conv2d(5, 7, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
    layer.packed = CachedWeight()
    x = torch.randn(2, 5, 9, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1), rtol=1e-5, atol=1e-5)
        assert len(packed) == 1
        layer.weight.mul_(-1)
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1), rtol=1e-5, atol=1e-5)
        assert len(packed) == 2
        with use_ops('reference'):
            assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1))
        large = torch.randn(2, 5, 60, 60).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(layer(large), F.conv2d(large, layer.weight, layer.bias, 2, 1), rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match=r'takes \(7, 4, 3, 3\)'):
            layer(torch.ones(2, 4, 9, 6))
    layer(x).sum().backward()
    assert layer.weight.grad is not None and len(packed) == 2


def test_drop_path():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 2, 1, 1))
    assert y.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(4, 2)), torch.ones(4, 2))
