"""Norms and scales fused into the layers next to them."""

import pytest
import torch
import torch.nn as nn
from networks import randomize_norms

from fcvit_mm.models.fusion import fuse_batch_norm_, fuse_batch_norm_before_, fuse_input_, fuse_output_
from fcvit_mm.models.layers import Conv2d
from fcvit_mm.models.stages import PatchEmbed


@torch.no_grad()
def test_batch_norms_are_fused_into_adjacent_layers():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 6)
    embed = randomize_norms(PatchEmbed(5, 7, 3, 2))
    expected = embed(x)
    embed.fuse_()
    assert isinstance(embed.norm, nn.Identity)
    torch.testing.assert_close(embed(x), expected, rtol=1e-4, atol=1e-5)
    norm, layer = randomize_norms(nn.BatchNorm2d(5)), Conv2d(5, 4, 1, bias=False)
    expected = layer(norm(x))
    assert isinstance(fuse_batch_norm_before_(norm, layer), nn.Identity)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scales_are_fused_into_weights():
    torch.manual_seed(0)
    x, scale, shift = torch.randn(3, 5), torch.rand(5), torch.rand(5)
    layer = nn.Linear(5, 5)
    expected = layer(x * scale + shift) * scale + shift
    fuse_input_(layer, scale, shift)
    fuse_output_(layer, scale, shift)
    torch.testing.assert_close(layer(x), expected)


def test_norms_that_cannot_be_fused_are_kept_or_refused():
    norm = nn.GroupNorm(1, 4)
    assert fuse_batch_norm_(Conv2d(4, 4, 1), norm) is norm
    assert fuse_batch_norm_before_(norm, Conv2d(4, 4, 1)) is norm
    with pytest.raises(ValueError, match='has no running statistics .*cannot be fused'):
        fuse_batch_norm_(Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
