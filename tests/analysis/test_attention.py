"""Attention and similarity maps agree with those that the layers compute, for networks of any package."""

import pytest
import torch
import torch.nn as nn
from networks import TRANSFORMERS, build_random, fcvit, swin, timm_vit, vit

from fcvit_mm.analysis import attention, recording
from fcvit_mm.analysis.attention import attention_layers, collect_attention, collect_similarity
from fcvit_mm.analysis.recording import AnalysisError, run_backbone


def reapply(module, weights, x):
    """Return the output of a self-attention with this attention matrix ``(B, heads, N, N)``."""
    values = module.qkv(x).unflatten(2, (3, module.num_heads, -1))[:, :, 2].transpose(1, 2)
    return module.proj((weights @ values).transpose(1, 2).flatten(2))


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', TRANSFORMERS)
@torch.no_grad()
def test_attention_maps_reproduce_the_output_of_the_layer(kind):
    model = build_random(TRANSFORMERS[kind])
    image = torch.randn(2, 3, 32, 32)
    layers = attention_layers(model)
    found = collect_attention(model, image)
    with recording.recording(layers, lambda name, module, args, kwargs, output: (args[0], output)) as seen:
        run_backbone(model, image)
    assert list(found) == list(seen) and len(found) >= 2
    for name, (x, output) in seen.items():
        layer = found[name]
        torch.testing.assert_close(reapply(layers[name], layer.weights.flatten(0, 1), x), output, atol=1e-4, rtol=1e-4)
        assert len(layer.weights) == 2 and layer.weights.shape[1] == len(layer.positions)
        patches = layer.positions[layer.positions >= 0]
        assert sorted(patches.tolist()) == list(range(layer.grid[0] * layer.grid[1]))
    if 'cait' not in kind:  # talking heads mix the maps after the softmax
        torch.testing.assert_close(layer.weights.sum(-1), torch.ones(layer.weights.shape[:-1]))
    if kind in ('vit', 'swin'):
        assert (layer.weights < 0).any(), 'AttnScale is not in the matrix'


@torch.no_grad()
def test_attention_maps_of_shifted_windows():
    """The map is padded to a multiple of the window. The attention of each position reproduces its output."""
    model = build_random(swin)
    image = torch.randn(1, 3, 36, 44)
    name = 'stages.0.blocks.1'
    block = model.get_submodule(name)
    block.feat_scale = torch.nn.Identity()
    layer = collect_attention(model, image, [name])[name]
    assert layer.grid == (9, 11) and (layer.positions < 0).any()
    x = torch.randn(1, 9, 11, 16)
    with recording.recording({name: block.norm1}, lambda name, module, args, kwargs, output: output) as normed:
        run_backbone(model, image)
    x = normed[name]
    tokens = torch.cat((x.flatten(1, 2), torch.zeros(1, 1, 16)), 1)  # the padding is the last token, at -1
    expected = block._attn(x).flatten(1, 2)
    for window, positions in enumerate(layer.positions):
        given = reapply(block.attn, layer.weights[:, window], tokens[:, positions])
        inside = positions >= 0
        torch.testing.assert_close(given[:, inside], expected[:, positions[inside]], atol=1e-5, rtol=1e-5)


def test_reduce_function_is_applied_and_hooks_are_removed():
    model = build_random(timm_vit)
    found = collect_attention(model, torch.randn(1, 3, 32, 32), ['blocks.1'], lambda layer: layer.grid)
    assert found == {'blocks.1': (4, 4)}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_attention_with_an_unknown_forward_is_refused():
    """The ``forward`` of a subclass may compute something else, so that the maps would be wrong."""
    for make, kind in ((timm_vit, 'VisionTransformer'), (vit, 'ViT')):
        model = build_random(make)
        for module in attention_layers(model).values():
            module.__class__ = type('Other', (type(module),), dict(forward=lambda self, x: x))
        with pytest.raises(AnalysisError, match=f'{kind} has no attention maps that can be computed, expected a ViT'):
            collect_attention(model, torch.randn(1, 3, 32, 32))


def test_unknown_layers_are_refused_with_a_list_of_layers():
    with pytest.raises(
        AnalysisError,
        match=r"unknown attention layer 'stages.0.blocks.9', expected one of these.*"
        r'stages.0.blocks.0, stages.0.blocks.1, stages.0.blocks.2$',
    ):
        collect_attention(build_random(vit), torch.randn(1, 3, 32, 32), ['stages.0.blocks.9'])


class Uniform(nn.Module):
    """Attention of another package, with equal weights for all tokens."""

    def forward(self, x):
        return x.mean(1, keepdim=True).expand_as(x)

    def attention_matrix(self, x):
        return x.new_full((len(x), 1, x.shape[1], x.shape[1]), 1 / x.shape[1])


class Windows(nn.Module):
    """A block of another package, whose windows are the two halves of a map ``(B, 4, 2, C)``."""

    def __init__(self):
        super().__init__()
        self.attn = Uniform()

    def forward(self, x):
        return self.attn(x.reshape(2 * len(x), 4, -1)).reshape(x.shape)

    def window_positions(self, x):
        return torch.arange(8).view(2, 4), x.shape[1:3]


class Gate(nn.Module):
    """A block with the method ``similarity``."""

    def __init__(self, weighted):
        super().__init__()
        self.weighted = weighted

    def similarity(self, x):
        return x[:, :1]

    def forward(self, x):
        return x


class OtherNet(nn.Module):
    """A network of another package, with all methods that the analyses use."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 2, 2)
        self.blocks = nn.ModuleList([nn.Sequential(Uniform()), Windows(), Gate(True), Gate(False)])

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.blocks[0](torch.cat((tokens[:, :1], tokens), 1))[:, 1:]
        x = self.blocks[1](tokens.reshape(len(x), 4, 2, 4)).permute(0, 3, 1, 2)
        return self.blocks[3](self.blocks[2](x))


def test_network_of_another_package():
    model, image = OtherNet(), torch.randn(2, 3, 8, 4)
    tokens, windows = collect_attention(model, image).values()
    assert tokens.weights.shape == (2, 1, 1, 9, 9) and tokens.grid == (4, 2)
    assert tokens.positions.tolist() == [[-1, *range(8)]]
    assert windows.weights.shape == (2, 2, 1, 4, 4) and windows.grid == (4, 2)
    assert windows.positions.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert {name: tuple(values.shape) for name, values in collect_similarity(model, image).items()} == {
        'blocks.2': (2, 1, 4, 2)
    }


def test_methods_are_used_only_with_the_forward_of_their_class():
    class Changed(Gate):
        def forward(self, x):
            return -x

    class Both(Changed):
        def similarity(self, x):
            return -x[:, :1]

    assert attention.method_of_forward(Gate(True), 'similarity')
    assert attention.method_of_forward(Changed(True), 'similarity') is None
    assert attention.method_of_forward(Both(True), 'similarity')
    assert attention.method_of_forward(Gate(True), 'attention_matrix') is None
    assert list(attention.similarity_layers(build_random(fcvit)))[:2] == [
        'stages.0.blocks.0.mixes.0',
        'stages.0.blocks.0.mixes.1',
    ]
