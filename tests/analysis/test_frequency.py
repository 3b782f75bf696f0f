"""Measures of oversmoothing: values for simple maps and tokens, the definition, different networks."""

import math

import pytest
import torch
import torch.nn as nn
from networks import TRANSFORMERS, build_random

import fcvit_mm
from fcvit_mm.analysis.frequency import (
    describe_frequencies,
    draw_oversmoothing,
    draw_spectra,
    energies,
    high_share,
    log_ratio,
    log_spectrum,
    oversmoothing,
    ring_profile,
    token_cosine,
)
from fcvit_mm.analysis.plots import figure_png, to_json_data
from fcvit_mm.analysis.recording import AnalysisError

MICRO_FCVIT = dict(depths=(1, 2, 1, 1), channels=(16, 16, 32, 32), mlp_ratios=(2, 2, 2, 2))
MICRO_VIT = dict(depths=(4,), channels=(32,), num_heads=(2,))


def checkerboard(height, width):
    return ((torch.arange(height)[:, None] + torch.arange(width)) % 2 * 2 - 1).float()[None, None]


def vit(methods=(), **lambs):
    pytest.importorskip('timm')
    torch.manual_seed(0)
    network = fcvit_mm.ViT(MICRO_VIT, methods, img_size=64, out_indices=2).eval()
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if name.rpartition('.')[2] in lambs:
                parameter.fill_(lambs[name.rpartition('.')[2]])
            elif name.endswith('qkv.weight'):
                parameter.mul_(20)  # so that attention has an effect besides the residual branch
    return network


def test_constant_map_has_no_high_frequencies():
    maps = torch.full((2, 3, 5, 4), 0.1)
    assert high_share(maps).tolist() == [0, 0]
    assert log_ratio(maps).tolist() == pytest.approx([-36.04, -36.04], abs=0.01)
    assert token_cosine(maps).tolist() == pytest.approx([1, 1])
    assert ring_profile(log_spectrum(maps))[1:].max() < -30


def test_checkerboard_has_only_high_frequencies():
    maps = checkerboard(6, 8)
    assert high_share(maps).tolist() == [1]
    assert log_ratio(maps).tolist() == pytest.approx([36.04], abs=0.01)
    spectrum = log_spectrum(maps + 1e-3)
    assert spectrum.shape == (6, 8) and spectrum[3, 4] == 0
    assert divmod(int(spectrum.argmax()), 8) == (0, 0)  # the corner, which is the frequency pi in both directions
    profile = ring_profile(spectrum)
    assert len(profile) == 4 and profile[1:].argmax() == 2


def test_zero_map_has_finite_measures():
    maps = torch.zeros(1, 2, 3, 3)
    assert log_ratio(maps).item() == 0 and high_share(maps).item() == 0
    assert log_spectrum(maps).isfinite().all()


def test_log_ratio_agrees_with_the_definition():
    # Tokens 3 and 1: the mean is 2, the deviations are 1 and -1.
    assert log_ratio(torch.tensor([[[[3.0, 1.0]]]])).item() == pytest.approx(math.log(1 / 2))
    assert high_share(torch.tensor([[[[3.0, 1.0]]]])).item() == pytest.approx(0.2)
    torch.manual_seed(0)
    maps = torch.randn(2, 7, 4, 5) + 0.3
    transformed = torch.fft.fft(maps.double().flatten(2), dim=2)
    keep = torch.zeros(20, dtype=torch.float64)
    keep[0] = 1
    low = torch.fft.ifft(transformed * keep, dim=2).real
    high = maps.double().flatten(2) - low
    expected = (high.norm(dim=(1, 2)) / low.norm(dim=(1, 2))).log()
    torch.testing.assert_close(log_ratio(maps), expected)
    torch.testing.assert_close(sum(energies(maps)), maps.double().square().sum((1, 2, 3)))


@pytest.mark.parametrize(
    'tokens, expected',
    [
        ([[1.0, 0.0], [2.0, 0.0]], 1.0),
        ([[1.0, 0.0], [0.0, 3.0]], 0.0),
        ([[1.0, 1.0], [-2.0, -2.0]], -1.0),
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], 1 / 3),
    ],
)
def test_cosine_similarity_of_tokens(tokens, expected):
    maps = torch.tensor(tokens).T[None, :, None]
    assert token_cosine(maps).item() == pytest.approx(expected)


@pytest.mark.parametrize('height, width', [(8, 8), (7, 7), (6, 10), (1, 1), (2, 9)])
def test_rings_contain_every_frequency_once(height, width):
    torch.manual_seed(0)
    profile = ring_profile(torch.ones(height, width))
    assert len(profile) == min(height, width) // 2 + 1 and torch.equal(profile, torch.ones_like(profile))
    if height == width:
        for k in range(1, len(profile)):
            # A horizontal wave with k periods.
            spectrum = torch.zeros(height, width)
            spectrum[height // 2, width // 2 - k] = 1
            assert ring_profile(spectrum).nonzero().tolist() == [[k]]


def test_measures_of_all_layers():
    network = fcvit_mm.FCViT(MICRO_FCVIT).eval()
    torch.manual_seed(0)
    images = [torch.randn(3, 64, 64), torch.randn(1, 3, 64, 64)]
    found = oversmoothing(network, images)
    assert list(found) == [
        f'stages.{i}.blocks.{j}' for i, depth in enumerate(MICRO_FCVIT['depths']) for j in range(depth)
    ]
    assert [layer.grid for layer in found.values()] == [(16, 16), (8, 8), (8, 8), (4, 4), (2, 2)]
    # In a stage of one block, the output of the block is that of the stage.
    stages = list(network.forward_stages(images[1]))
    one = oversmoothing(network, images[1:])['stages.0.blocks.0']
    assert one.log_ratio == pytest.approx(log_ratio(stages[0]).item(), abs=1e-4)
    assert one.cosine == pytest.approx(token_cosine(stages[0]).item(), abs=1e-4)
    other = oversmoothing(network, images[:1])['stages.0.blocks.0']
    assert found['stages.0.blocks.0'].log_ratio == pytest.approx((one.log_ratio + other.log_ratio) / 2)
    # Images may have different sizes; spectra have the size of the first.
    mixed = oversmoothing(network, [images[0], torch.randn(3, 32, 48)], ['stages.0.blocks.0'])
    assert mixed['stages.0.blocks.0'].spectrum.shape == (16, 16)
    rows = to_json_data(describe_frequencies(found))
    assert rows[0]['layer'] == 'stages.0.blocks.0' and rows[0]['grid'] == [16, 16]
    assert len(rows[0]['relative_log_amplitude']) == 9 and rows[0]['relative_log_amplitude'][0] == pytest.approx(0)
    assert figure_png(draw_oversmoothing({'a': found, 'b': found})).startswith(b'\x89PNG')
    assert figure_png(draw_spectra(found, 'spectra')).startswith(b'\x89PNG')


def test_attn_scale_and_feat_scale_change_frequencies():
    torch.manual_seed(1)
    images = [torch.randn(1, 3, 64, 64)]

    def last(network):
        return list(oversmoothing(network, images).values())[-1]

    unmodified = last(vit())
    # The initial factors change nothing.
    assert last(vit(('attn_scale',))).log_ratio == pytest.approx(unmodified.log_ratio, abs=1e-5)
    assert last(vit(('feat_scale',))).log_ratio == pytest.approx(unmodified.log_ratio, abs=1e-5)
    # AttnScale keeps more high frequencies of attention maps. With random weights, features may have more or fewer.
    assert abs(last(vit(('attn_scale',), lamb=3.0)).log_ratio - unmodified.log_ratio) > 0.01
    assert last(vit(('feat_scale',), lamb2=3.0)).log_ratio > unmodified.log_ratio + 0.1
    assert last(vit(('feat_scale',), lamb1=3.0)).log_ratio < unmodified.log_ratio - 0.1


def test_class_token_of_a_timm_vit_is_skipped():
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    network = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=2).eval()
    image = torch.randn(1, 3, 64, 64)
    found = oversmoothing(network, [image])
    tokens = network.forward_intermediates(image, indices=[0], norm=False, intermediates_only=True)[0]
    assert list(found) == ['blocks.0', 'blocks.1'] and tokens.shape[2:] == (4, 4)
    assert found['blocks.0'].log_ratio == pytest.approx(log_ratio(tokens).item(), abs=1e-5)


def test_unknown_layers_and_missing_images_are_refused():
    network = fcvit_mm.FCViT(MICRO_FCVIT)
    with pytest.raises(AnalysisError, match='no images given, expected at least one: give image files'):
        oversmoothing(network, [])
    with pytest.raises(AnalysisError, match=r"no layer 'stages.9'.*stages.0.blocks.0"):
        oversmoothing(network, [torch.rand(3, 32, 32)], ['stages.9'])
    with pytest.raises(AnalysisError, match='give the names of the layers'):
        oversmoothing(nn.Sequential(nn.Conv2d(3, 4, 3)), [torch.rand(3, 32, 32)])


@pytest.mark.parametrize('kind', TRANSFORMERS)
def test_transformers_have_finite_measures(kind):
    network = build_random(TRANSFORMERS[kind])
    found = oversmoothing(network, [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))])
    assert len(found) >= 2 and all(
        math.isfinite(layer.log_ratio) and 0 <= layer.high_share < 1 for layer in found.values()
    )


def test_dwnet_has_measures_of_all_stages():
    found = oversmoothing(
        fcvit_mm.DWNet(dict(depths=(1, 1, 1, 1), channels=(8, 8, 16, 16)), dynamic='homogeneous'),
        [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))],
    )
    assert [layer.grid for layer in found.values()] == [(16, 16), (8, 8), (4, 4), (2, 2)]
