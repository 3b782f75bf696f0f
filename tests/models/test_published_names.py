"""Patterns of names, and tables of them."""

import random

import pytest
import torch
from networks import NETWORKS, build

import fcvit_mm
from fcvit_mm.models.published_names import PublishedNames, Row, is_like, output_norms, renamer


def test_star_matches_one_part():
    assert is_like('a.b.c', ('a.*.c',))
    assert not is_like('a.b.b.c', ('a.*.c',))
    assert not is_like('a..c', ('a.*.c',))
    assert not is_like('a.b.c', ())


def test_stars_are_filled_in_order():
    rename = renamer([('network.*.*.norm', 'stages.*.blocks.*.norm1')])
    assert rename('network.2.11.norm') == 'stages.2.blocks.11.norm1'
    assert rename('network.2.norm') is None


def test_most_specific_pattern_wins_in_any_order():
    pairs = [('a.*.*', 'general.*.*'), ('a.*.lamb', 'lamb.*'), ('*.*.*', 'any.*.*.*')]
    for order in (pairs, pairs[::-1]):
        assert renamer(order)('a.1.lamb') == 'lamb.1'
        assert renamer(order)('a.1.b') == 'general.1.b'


def test_every_field_is_optional():
    names = PublishedNames()
    assert names.to_ours('a') is None and names.kind({}) == '' and names.conditions({}) == set()
    assert PublishedNames(rows=(Row('a', 'b'),)).to_published({'b': 1}) == {'a': 1}


def test_names_without_a_published_name():
    with pytest.raises(KeyError, match='elsewhere.weight has no published name'):
        fcvit_mm.FCViT.published_names.to_published({'elsewhere.weight': torch.ones(1)})


@pytest.mark.parametrize(
    'names, expected',
    [
        (['norm3.weight'], 'classification'),
        (['norm3.weight', 'norm1.weight'], 'dense'),
        (['norm3.weight', 'norm3.running_mean'], 'dense'),
    ],
)
def test_output_norms(names, expected):
    assert output_norms(dict.fromkeys(names)) == expected


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('dense', [True, False])
def test_order_of_rows_does_not_matter(network, dense):
    row = NETWORKS[network]
    state_dict = build(row, **({} if dense else row.classifier)).state_dict()
    names = row.type.published_names
    published = names.to_published(state_dict)
    assert len(published) == len(state_dict)
    shuffled = list(names.rows)
    random.Random(0).shuffle(shuffled)
    again = names._replace(rows=tuple(shuffled))
    assert list(again.to_published(state_dict)) == list(published)
    assert [again.to_ours(key) for key in published] == list(state_dict)
