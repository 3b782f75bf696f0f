"""Statistics of query irrelevance and sparsity: values for simple maps, different networks."""

import math

import numpy as np
import pytest
import torch
from networks import TRANSFORMERS, Convs, build_random, fcvit, vit

from fcvit_mm.analysis import attention_statistics, draw_statistics
from fcvit_mm.analysis.attention import Attention
from fcvit_mm.analysis.recording import AnalysisError
from fcvit_mm.analysis.statistics import (
    MEASURES,
    divergence,
    entropy,
    magnitude_shares,
    mean_statistics,
    of_attention,
    of_similarity,
    pairwise_cosine,
    top_share,
)


def test_measures_of_simple_maps():
    same = torch.tensor([0.5, 0.25, 0.25, 0.0]).repeat(5, 1)
    different = torch.eye(4)
    uniform = torch.full((3, 8), 1 / 8)
    assert pairwise_cosine(same).item() == pytest.approx(1) and divergence(same).item() == pytest.approx(0, abs=1e-6)
    assert pairwise_cosine(different).item() == pytest.approx(0) and divergence(different).item() == pytest.approx(1)
    assert pairwise_cosine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-1)
    assert entropy(different).tolist() == [0] * 4 and entropy(uniform).tolist() == pytest.approx([1] * 3)
    assert entropy(same)[0].item() == pytest.approx(1.5 * math.log(2) / math.log(4))
    assert top_share(different).tolist() == [1] * 4
    assert top_share(torch.full((20,), 0.05)).item() == pytest.approx(0.1)
    assert top_share(torch.full((11,), 1 / 11)).item() == pytest.approx(2 / 11)
    # Two of three queries attend to the first position, one to the second: entropy H(2/3, 1/3) - 0, bound log 2.
    three = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    expected = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
    assert divergence(three).item() == pytest.approx(expected)
    assert pairwise_cosine(three).item() == pytest.approx(1 / 3)  # one pair of three agrees
    assert magnitude_shares(torch.tensor([[-3.0, 1.0], [0.0, 0.0]])).tolist() == [[0.75, 0.25], [0.5, 0.5]]


def test_measures_of_a_single_map_are_nan():
    one = torch.tensor([[1.0, 2.0, 3.0]])
    assert pairwise_cosine(one).isnan() and divergence(one / 6).isnan() and entropy(torch.ones(1, 1)).isnan()


def test_pairwise_cosine_agrees_with_a_loop():
    torch.manual_seed(0)
    vectors = torch.randn(2, 6, 9)
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    expected = [np.mean([torch.cosine_similarity(maps[i], maps[j], 0) for i, j in pairs]) for maps in vectors]
    assert pairwise_cosine(vectors).tolist() == pytest.approx(expected, abs=1e-6)


def attention_of(weights, positions=None, grid=(2, 2)):
    weights = torch.as_tensor(weights)[None, None]
    positions = torch.arange(weights.shape[-1]) if positions is None else torch.tensor(positions)
    return Attention(weights, positions.view(1, -1), grid)


def test_statistics_of_simple_attention():
    # Two heads: in the first every query attends to token 0, in the second to itself.
    first, second = torch.zeros(4, 4), torch.eye(4)
    first[:, 0] = 1
    found = of_attention(attention_of(torch.stack((first, second))))
    assert list(found) == list(MEASURES)
    assert found == pytest.approx(
        dict(
            query_cosine=0.5,
            query_divergence=0.5,
            head_cosine=0.25,
            head_divergence=0.75,
            entropy=0,
            top_share=1,
            other_share=0,
        )
    )
    # The class token has half of the attention: it is not in the maps, but in other_share.
    weights = torch.full((1, 5, 5), 0.125)
    weights[..., 0] = 0.5
    found = of_attention(attention_of(weights, [-1, 0, 1, 2, 3]))
    assert found == pytest.approx(
        dict(
            query_cosine=1,
            query_divergence=0,
            head_cosine=math.nan,
            head_divergence=math.nan,
            entropy=1,
            top_share=0.25,
            other_share=0.5,
        ),
        nan_ok=True,
        abs=1e-6,
    )


def test_windows_have_equal_weights():
    """In one window, all tokens attend to the first; in two windows with padding, each token attends to itself."""
    weights = torch.zeros(1, 3, 1, 4, 4)
    weights[:, 0, :, :, 0] = 1
    weights[:, 1:] = torch.eye(4)
    positions = torch.tensor([[0, 1, 2, 3], [4, 5, -1, -1], [6, 7, -1, -1]])
    found = of_attention(Attention(weights, positions, (2, 4)))
    assert found['query_cosine'] == pytest.approx(1 / 3) and found['query_divergence'] == pytest.approx(2 / 3)
    padding = torch.full((1, 4), -1)
    assert math.isnan(of_attention(Attention(weights[:, :1], padding, (0, 0)))['entropy'])


def test_statistics_of_simple_similarity_maps():
    maps = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0], [4.0, 0.0, 0.0, 0.0]]).view(1, 3, 2, 2)
    found = of_similarity(maps)
    cosine = (2 * 1 + 4 * 0.5) / 6  # the first two are equal; each has an angle of 60 degrees to the third
    assert found['head_cosine'] == pytest.approx(cosine)
    assert found['entropy'] == pytest.approx(2 / 3) and found['top_share'] == pytest.approx((0.25 * 2 + 1) / 3)
    assert (found['query_cosine'], found['query_divergence'], found['other_share']) == (1, 0, 0)


@pytest.mark.parametrize('kind', [*TRANSFORMERS, 'fcvit'])
def test_statistics_of_different_networks(kind):
    model = build_random(TRANSFORMERS.get(kind, fcvit))
    found = attention_statistics(model, torch.randn(2, 3, 32, 32))
    assert found.kind == ('similarity' if kind == 'fcvit' else 'attention') and found.images == 2
    assert found.by_construction == (('query_cosine', 'query_divergence', 'other_share') if kind == 'fcvit' else ())
    assert len(found.layers) >= 2
    for measured in found.layers.values():
        assert list(measured) == list(MEASURES)
        for name, value in measured.items():
            assert math.isnan(value) or (-1 if 'cosine' in name else 0) <= value <= 1 + 1e-6, name
    measured = list(found.layers.values())[0]
    assert (measured['other_share'] > 0) == (kind in ('vit', 'timm_vit', 'mmpretrain_vit', 'mmpretrain_deit'))


def test_mean_over_images_agrees_with_a_batch():
    model = build_random(vit)
    first, second = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    each = [attention_statistics(model, image, ['stages.0.blocks.1']) for image in (first, second)]
    together = attention_statistics(model, torch.cat((first, second)), ['stages.0.blocks.1'])
    averaged = mean_statistics(each)
    assert averaged.images == 2
    assert averaged.layers['stages.0.blocks.1'] == pytest.approx(together.layers['stages.0.blocks.1'], abs=1e-6)
    with pytest.raises(AnalysisError, match='2 statistics, expected .*: average each network by itself'):
        mean_statistics([each[0], attention_statistics(model, first)])


def test_unsuitable_networks_and_layers_are_refused():
    with pytest.raises(AnalysisError, match='Convs has neither attention nor similarity maps, expected a ViT'):
        attention_statistics(build_random(Convs), torch.randn(3, 8, 8))
    with pytest.raises(AnalysisError, match="unknown token mix 'blocks.1', expected one of"):
        attention_statistics(build_random(fcvit), torch.randn(3, 32, 32), ['blocks.1'])
    with pytest.raises(AnalysisError, match='0 networks, expected 1 to 7'):
        draw_statistics({})


def test_figure_has_labels_and_a_legend():
    image = torch.randn(1, 3, 32, 32)
    found = {
        'FCViT': attention_statistics(build_random(fcvit), image),
        'ViT': attention_statistics(build_random(vit), image),
    }
    figure = draw_statistics(found, 'Title')
    assert len(figure.axes) == 6 and all(axes.get_ylabel() and axes.get_xlabel() for axes in figure.axes)
    measured, by_construction = figure.axes[0].get_lines()[::-1]
    assert by_construction.get_linestyle() == ':' and measured.get_linestyle() == '-'
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['FCViT', 'ViT']
    assert 'by construction' in figure.axes[0].texts[0].get_text() and not figure.axes[1].texts
