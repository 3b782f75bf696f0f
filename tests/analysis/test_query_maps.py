"""Attention maps of query points: their values agree with those of the networks; figures."""

import numpy as np
import pytest
import torch
from networks import TRANSFORMERS, build_random, fcvit, swin, timm_vit, vit

from fcvit_mm.analysis import attention_maps, draw_attention, similarity_maps
from fcvit_mm.analysis.attention import collect_attention
from fcvit_mm.analysis.query_maps import draw_beside, position_of, spread
from fcvit_mm.analysis.recording import AnalysisError

IMAGE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
QUERIES = [(0.2, 0.3), (0.5, 0.5)]


@torch.no_grad()
def test_maps_are_the_attention_of_the_query_positions():
    model, image = build_random(timm_vit), torch.randn(3, 32, 32)
    maps = attention_maps(model, image, [(0.0, 0.0), (0.99, 0.3)], ['blocks.1', 'blocks.2'])
    assert list(maps) == ['blocks.1', 'blocks.2'] and maps['blocks.1'].shape == (2, 4, 4, 4)
    weights = collect_attention(model, image)['blocks.2'].weights[0, 0]  # a class token and two registers come first
    torch.testing.assert_close(maps['blocks.2'][0].flatten(1), weights[:, 3, 3:])
    torch.testing.assert_close(maps['blocks.2'][1].flatten(1), weights[:, 3 + 3 * 4 + 1, 3:])
    assert (maps['blocks.2'].sum((-2, -1)) < 1).all()
    assert position_of((1.0, 1.0), (4, 6)) == (3, 5) and position_of((0.5, 0.49), (4, 6)) == (2, 2)


def test_attention_of_a_query_is_zero_outside_of_its_window():
    maps = attention_maps(build_random(swin), torch.randn(3, 64, 64), [(0.1, 0.9), (0.3, 0.7)], ['stages.0'])
    unshifted, shifted = maps['stages.0.blocks.0'][0, 0], maps['stages.0.blocks.1'][1, 0]
    assert unshifted.shape == (16, 16) and (unshifted[:4, 12:] != 0).all()
    unshifted[:4, 12:] = 0
    assert (unshifted == 0).all()
    assert (shifted != 0).sum() == 16 and (shifted[2:6, 10:14] != 0).all()


@pytest.mark.parametrize('kind', TRANSFORMERS)
def test_every_transformer_has_attention_maps(kind):
    maps = attention_maps(build_random(TRANSFORMERS[kind]), torch.randn(1, 3, 32, 32), [(0.5, 0.5)])
    assert len(maps) >= 2 and all(torch.isfinite(values).all() and values.any() for values in maps.values())


def test_unsuitable_networks_and_queries_are_refused():
    image = torch.randn(3, 32, 32)
    with pytest.raises(AnalysisError, match='FCViT has no attention maps that can be computed.* similarity maps'):
        attention_maps(build_random(fcvit), image, [(0.5, 0.5)])
    for queries in ([(0.5, 1.5)], [(0.5,)], []):
        with pytest.raises(AnalysisError, match='expected points'):
            attention_maps(build_random(vit), image, queries)


def test_figures_have_labels_and_query_points():
    attention = attention_maps(build_random(vit), torch.randn(3, 32, 48), QUERIES)
    similarity = similarity_maps(build_random(fcvit), torch.randn(3, 32, 48))
    single = draw_attention(attention, IMAGE, QUERIES)
    assert [axes.get_ylabel() for axes in single.axes[::4]][:2] == ['query 1', 'query 2']
    assert single.axes[4].get_lines()[0].get_xydata().tolist() == [[24.0, 16.0]]
    both = draw_beside({'A': (attention, IMAGE), 'B': (similarity, IMAGE)}, QUERIES)
    assert [axes.get_ylabel() for axes in both.axes[::7]][:3] == ['A\nquery 1', 'A\nquery 2', 'B\nno query']
    assert not both.axes[14].get_lines()
    for figure in (single, both):
        assert figure.axes[-1].get_ylabel(), 'the color bar has no label'
    with pytest.raises(AnalysisError, match='no map of stages.9, expected some of stages.0.blocks.0'):
        draw_attention(attention, IMAGE, [(0.5, 0.5)], layers=['stages.9'])


def test_layers_are_chosen_evenly():
    assert spread(list('abcdefghijk'), 6) == list('acegik') and spread(list('ab'), 3) == ['a', 'a', 'b']
