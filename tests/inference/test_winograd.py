"""3x3 convolutions with fewer multiplications: they agree with PyTorch, which computes what they do not support."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from fcvit_mm.inference import winograd
from fcvit_mm.inference.winograd import WinogradConv2d, winograd_conv2d, winograd_weight
from fcvit_mm.ops import native, use_ops


def layer(channels=5, outputs=7, **options):
    torch.manual_seed(0)
    return WinogradConv2d(channels, outputs, 3, padding=1, **options)


@pytest.fixture(params=['native', 'torch'])
def any_layer_size(monkeypatch, request):
    """Compute layers of any size by tiles, by the compiled kernels and by PyTorch's operators."""
    if request.param == 'torch':
        monkeypatch.setattr(native, 'available', lambda: False)
    elif not native.available():
        pytest.skip('no compiled CPU kernels here')
    for name in ('MIN_TILES', 'MIN_CHANNELS', 'MIN_TILES_NATIVE', 'MIN_CHANNELS_NATIVE'):
        monkeypatch.setattr(winograd, name, 1)


@pytest.fixture
def fail_on_tiles(monkeypatch):
    def refuse(*_):
        raise AssertionError('computed by tiles')

    monkeypatch.setattr(winograd, 'winograd_conv2d', refuse)
    monkeypatch.setattr(native, 'winograd_conv2d', refuse)


@pytest.mark.parametrize('tiles', [1, 7, 256])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('size', [(2, 5, 1, 1), (1, 5, 4, 4), (3, 5, 9, 14), (5, 5, 8, 7), (1, 5, 33, 2)])
def test_values_agree_with_torch(size, bias, tiles, monkeypatch):
    monkeypatch.setattr(winograd, 'TILES', tiles)
    torch.manual_seed(1)
    x, conv = torch.randn(size), layer(bias=bias)
    expected = F.conv2d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = winograd_conv2d(x.contiguous(memory_format=layout), winograd_weight(conv.weight), conv.bias)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5 * expected.abs().max().item())
        assert got.permute(0, 2, 3, 1).stride(-1) == 1


def test_layer_agrees_with_torch(any_layer_size):
    conv = layer()
    plain = nn.Conv2d(5, 7, 3, padding=1)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 5, 9, 10)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), plain(x), rtol=0, atol=1e-5)
        assert not torch.equal(conv(x), plain(x))  # another arithmetic
        with use_ops('reference'):
            torch.testing.assert_close(conv(x), plain(x), rtol=0, atol=1e-7)


def test_supported_layers():
    def fits(*args, **options):
        return WinogradConv2d.fits(nn.Conv2d(*args, **options))

    assert fits(256, 256, 3, padding=1) and fits(64, 512, 3, padding='same')
    assert not fits(256, 32, 3, padding=1)
    for options in (
        dict(padding=0),
        dict(padding=1, stride=2),
        dict(padding=2, dilation=2),
        dict(padding=1, groups=2),
        dict(padding=1, padding_mode='reflect'),
    ):
        assert not fits(256, 256, 3, **options), options
    assert not fits(256, 256, 5, padding=1) and not fits(256, 256, (3, 1), padding=1)


def test_gradients_use_pytorch(any_layer_size, fail_on_tiles):
    conv = layer()
    conv(torch.randn(1, 5, 8, 8)).sum().backward()
    assert conv.weight.grad is not None


@torch.no_grad()
def test_unsupported_calls_use_pytorch(any_layer_size, fail_on_tiles):
    conv, x = layer(), torch.randn(1, 5, 8, 8)
    assert conv.double()(x.double()).dtype == torch.float64
    conv.float()
    with torch.autocast('cpu', torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert conv(x[:0]).shape == (0, 7, 8, 8)
    with pytest.raises(ValueError, match='x of shape .1, 4, 8, 8. takes'):
        conv(torch.randn(1, 4, 8, 8))
    traced = torch.jit.trace(conv, x, check_trace=False)
    assert traced(torch.randn(2, 5, 3, 30)).shape == (2, 7, 3, 30)
    with pytest.raises(AssertionError, match='by tiles'):
        conv(x)


@torch.no_grad()
def test_small_layers_use_pytorch(fail_on_tiles, monkeypatch):
    layer(40, 40)(torch.randn(1, 40, 64, 64))
    monkeypatch.setattr(native, 'available', lambda: False)
    layer(128, 128)(torch.randn(1, 128, 64, 64))
    layer(192, 192)(torch.randn(1, 192, 36, 36))
    with pytest.raises(AssertionError, match='by tiles'):
        layer(192, 192)(torch.randn(1, 192, 40, 40))


@torch.no_grad()
def test_layer_works_with_and_without_the_kernels(any_layer_size, monkeypatch):
    """As after unpickling on another machine, where the compiled kernels are installed or missing."""
    conv, x = layer(), torch.randn(1, 5, 8, 8)
    expected = conv(x)
    there = native._load()
    for available in (there, False, there):
        monkeypatch.setattr(native, 'available', lambda available=available: available)
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_changed_weights_take_effect(any_layer_size):
    conv, x = layer(), torch.randn(1, 5, 8, 8)
    before = conv(x)
    conv.weight.mul_(2)
    conv.bias.mul_(2)
    torch.testing.assert_close(conv(x), 2 * before, rtol=0, atol=1e-4)
    conv.load_state_dict({name: value / 2 for name, value in conv.state_dict().items()})
    torch.testing.assert_close(conv(x), before, rtol=0, atol=1e-4)


@torch.no_grad()
def test_copies_contain_no_transformed_weight(any_layer_size):
    conv, x = layer(64, 64), torch.randn(1, 64, 8, 8)
    size, expected = len(pickle.dumps(conv)), conv(x)
    assert len(pickle.dumps(conv)) < 1.1 * size
    for other in (pickle.loads(pickle.dumps(conv)), copy.deepcopy(conv)):
        assert torch.equal(other(x), expected)
    assert set(conv.state_dict()) == {'weight', 'bias'}
