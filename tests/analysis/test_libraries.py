"""Attention matrices and memory layouts of modules of timm and mmpretrain."""

import sys

import pytest
import torch
from networks import build_random, timm_cait, timm_vit

from fcvit_mm.analysis import libraries


def test_libraries_that_are_not_imported_are_ignored(monkeypatch):
    monkeypatch.delitem(sys.modules, 'timm', raising=False)
    monkeypatch.delitem(sys.modules, 'mmpretrain.models', raising=False)
    assert not libraries.attention_functions() and not libraries.channels_last_blocks()


@torch.no_grad()
def test_attention_matrices_of_timm():
    x = torch.randn(2, 5, 32)
    module = build_random(timm_vit).blocks[0].attn
    assert libraries.attention_functions()[type(module)] is libraries.softmax_attention
    matrix = libraries.softmax_attention(module, x)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 4, 5))
    masked = libraries.softmax_attention(module, x, torch.tensor([0.0, 0, 0, 0, -torch.inf]))
    assert (masked[..., 4] == 0).all() and (masked[..., :4] > matrix[..., :4]).all()
    causal = libraries.softmax_attention(module, x, is_causal=True)
    assert (causal.triu(1) == 0).all() and (causal[:, :, 0, 0] == 1).all()
    module = build_random(timm_cait).blocks[0].attn
    assert libraries.attention_functions()[type(module)] is libraries.talking_heads_attention
    assert libraries.talking_heads_attention(module, x).shape == (2, 4, 5, 5)


def test_channels_last_blocks_of_timm():
    timm = pytest.importorskip('timm')
    model = timm.create_model('swinv2_tiny_window8_256', img_size=32, depths=(1,), embed_dim=16, num_heads=(2,))
    assert isinstance(model.layers[0].blocks[0], libraries.channels_last_blocks())
    assert not isinstance(model.layers[0], libraries.channels_last_blocks())
