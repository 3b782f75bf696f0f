"""Rows of variants, and variants that other packages register."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from plain_net import temporary_variants
from uninitialized import uninitialized

import fcvit_mm
from fcvit_mm.errors import UserError
from fcvit_mm.models import variants
from fcvit_mm.models.layers import count_parameters
from fcvit_mm.models.variants import (
    VARIANTS,
    Variant,
    collection_of,
    find_variant,
    for_each_variant,
    register_variant,
    variants_of,
)

ROOT = Path(__file__).resolve().parents[2]
ROW = Variant('fcvit_nano', fcvit_mm.FCViT, dict(arch='tiny', out_indices=(3,)), 0.9, 'arXiv:0', 'FCViT')


@pytest.fixture(name='temporary_variants')
def fixture_temporary_variants():
    with temporary_variants():
        variants._listeners.clear()
        yield


@pytest.mark.parametrize('name', VARIANTS)
def test_row_agrees_with_its_network(name):
    """Each row builds a classifier's backbone with the stated number of parameters."""
    row = VARIANTS[name]
    if row.network.__name__ in ('ViT', 'CaiT', 'Swin'):
        pytest.importorskip('timm')
    with uninitialized():
        backbone = row.build()
    assert row.name == name and len(backbone.out_channels) == 1
    assert count_parameters(backbone) + 1000 * (backbone.out_channels[0] + 1) == row.parameters
    assert not set(row.published) - set(variants.METRICS) and all(0 < value < 100 for value in row.published.values())
    assert isinstance(backbone.get_submodule(row.first_conv), torch.nn.Conv2d)


@pytest.mark.parametrize('name', [name for name in VARIANTS if VARIANTS[name].config is not None])
def test_row_agrees_with_its_config(name):
    """The config has the same network and options."""
    pytest.importorskip('mmpretrain')  # whose configs ours begin with
    row = VARIANTS[name]
    backbone = Config.fromfile(ROOT / row.config).model.backbone
    assert Path(row.config).stem == row.hub_name
    assert backbone.type in (row.network, row.network.__name__)
    options = {key: value for key, value in row.options.items() if key != 'out_indices'}
    for key, value in options.items():
        given = backbone.get(key, value)
        assert (tuple(given) if isinstance(given, (list, tuple)) else given) == value, key


def test_found_by_name():
    assert find_variant('fcvit_b12') is find_variant('fcvit_b12_in1k') is VARIANTS['fcvit_b12']
    assert find_variant('fcvit_b12').metrics == {'Top 1 Accuracy': 80.9}
    with pytest.raises(UserError, match="unknown network 'resnet50', expected one of fcvit_tiny, fcvit_b12"):
        find_variant('resnet50')


def test_found_by_network():
    assert [row.name for row in variants_of(fcvit_mm.FCViT)] == ['fcvit_tiny', 'fcvit_b12', 'fcvit_b24', 'fcvit_b48']
    assert collection_of(fcvit_mm.Swin) == 'AttnScale and FeatScale'
    assert collection_of(torch.nn.Linear) is None


def test_options_are_added_to_those_of_the_row():
    backbone = VARIANTS['fcvit_tiny'].build(out_indices=(0, 1), in_channels=1)
    assert backbone.out_indices == (0, 1) and backbone.stem.proj.in_channels == 1
    with pytest.raises(TypeError, match='depth'):
        VARIANTS['fcvit_tiny'].build(depth=3)


def test_rows_cannot_be_changed():
    with pytest.raises(TypeError):
        VARIANTS['fcvit_nano'] = ROW


def test_listeners_get_earlier_and_later_variants(temporary_variants):
    heard = []
    register_variant(ROW)
    for_each_variant(lambda row: heard.append(row.name))
    assert heard == list(VARIANTS) and 'fcvit_nano' in heard
    register_variant(ROW._replace(name='fcvit_pico'))
    assert heard[-1] == 'fcvit_pico' and find_variant('fcvit_pico_in1k').network is fcvit_mm.FCViT
    before = len(heard)
    register_variant(ROW)  # as a module that is imported twice does
    assert len(heard) == before


def test_duplicate_variant_name_is_refused(temporary_variants):
    register_variant(ROW)
    with pytest.raises(
        UserError, match="variant name 'fcvit_nano' of DWNet is already used by FCViT: register it under"
    ):
        register_variant(ROW._replace(network=fcvit_mm.DWNet))
