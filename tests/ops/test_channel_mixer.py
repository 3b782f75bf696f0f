"""The channel mixer in slices; the common tests of all operations are in test_implementations.py."""

import importlib

import pytest
import torch
from operations import LAYOUTS, cast, random_call, values_and_gradients

from fcvit_mm.models.fcvit import ChannelMixer
from fcvit_mm.ops import channel_mixer, recomputed_channel_mixer

# The package exports the operation under the module's name.
module = importlib.import_module('fcvit_mm.ops.channel_mixer')
sliced = next(row for row in channel_mixer.implementations if row.name == 'sliced')


def test_slices_of_uneven_numbers_of_channels_and_images(small_machine):
    torch.manual_seed(0)
    x = torch.randn(5, 6, 8, 8)
    hidden = 50
    args = [
        torch.randn(hidden, 6, 1, 1),
        torch.randn(hidden),
        torch.randn(hidden, 1, 3, 3),
        torch.randn(hidden),
        torch.randn(6, hidden, 1, 1),
        torch.randn(6),
    ]
    slices = module.plan_slices(x, hidden)
    assert hidden % slices.channels and slices.images < 5
    torch.testing.assert_close(sliced.function(x, *args), channel_mixer.reference(x, *args), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    'shape, hidden',
    [
        ((8, 64, 56, 56), 512),
        ((8, 128, 28, 28), 1024),
        ((7, 64, 56, 56), 512),
        ((1, 128, 100, 152), 1024),
        ((64, 320, 14, 14), 1280),
    ],
)
def test_slices_stay_below_the_size_limit(shape, hidden):
    slices = module.plan_slices(torch.empty(shape, device='meta'), hidden)
    size = slices.images * slices.channels * shape[2] * shape[3] * 4
    assert module.SLICE_BYTES / 4 < size <= module.SLICE_BYTES
    assert slices.channels >= min(module.WIDE, hidden)


def test_feature_map_that_fits_is_one_slice():
    for shape in ((8, 320, 14, 14), (0, 320, 14, 14), (1, 64, 7, 7)):
        assert module.plan_slices(torch.empty(shape, device='meta'), 1280) == (shape[0], 1280)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_recomputed_mixer_has_the_gradients_of_the_reference(small_machine, layout):
    args = cast(random_call(channel_mixer, (2, 8, 7)), torch.float32, layout)
    expected = values_and_gradients(channel_mixer, channel_mixer.reference, args)
    for want, have in zip(expected, values_and_gradients(channel_mixer, recomputed_channel_mixer, args)):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_recomputed_mixer_keeps_less_for_the_backward_pass(small_machine):
    def kept(function) -> int:
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)
            return tensor

        held = []

        args = cast(random_call(channel_mixer, (2, 16, 16)), torch.float32, 'channels_last')
        args = [arg.requires_grad_() for arg in args]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = function(*args)
        assert output.requires_grad
        return sum(sizes.values())

    assert kept(recomputed_channel_mixer) < kept(channel_mixer) / 2


def test_hooks_in_a_channel_mixer_are_called():
    mixer = ChannelMixer(8, 16).eval()
    x = torch.randn(1, 8, 4, 4)
    without = mixer(x)
    calls = []
    for name in ('fc1', 'dwconv', 'fc2'):
        getattr(mixer, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    torch.testing.assert_close(mixer(x), without)
    assert calls == ['fc1', 'dwconv', 'fc2']


def test_refuses_invalid_arguments():
    x, *weights = cast(random_call(channel_mixer, (2, 4, 4)), torch.float32)
    weights[4] = torch.ones(16, 32, 1, 1)
    with pytest.raises(
        ValueError,
        match=r'channel_mixer: fc2_weight has the shape \(16, 32, 1, 1\), but x .* takes \(16, 64, 1, 1\)',
    ):
        channel_mixer(x, *weights)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('grad', [False, True])
def test_adds_a_shortcut(small_machine, dtype, layout, grad):
    """Values and gradients of each implementation."""
    x, *weights = cast(random_call(channel_mixer, (2, 5, 7)), dtype, layout)
    torch.manual_seed(1)
    shortcut = torch.randn(x.shape).to(x)
    args = [arg.requires_grad_(grad) for arg in (x, *weights, shortcut)]
    for row in channel_mixer.table:
        if not row.when(*args):
            continue
        output, without = row.function(*args), row.function(*args[:-1])
        tolerance = 0.06 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(output, shortcut + without, rtol=tolerance, atol=tolerance)
        if grad:
            slope = torch.randn(x.shape).to(x)
            torch.testing.assert_close(torch.autograd.grad(output, shortcut, slope)[0], slope)


def test_refuses_a_shortcut_of_another_size():
    x, *weights = cast(random_call(channel_mixer, (2, 4, 4)), torch.float32)
    with pytest.raises(
        ValueError, match=r'channel_mixer: shortcut has the shape \(2, 16, 4, 1\), but x .* takes \(2, 16, 4, 4\)'
    ):
        channel_mixer(x, *weights, x[..., :1])
