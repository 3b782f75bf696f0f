"""Counts of parameters, multiply-adds and bytes."""

import pytest
import torch
import torch.nn as nn
import yaml
from harness import ROOT
from mmengine.config import Config

from fcvit_mm.apis.count import count_multiply_adds, count_traffic, measure
from fcvit_mm.errors import UserError

CONFIGS = ROOT / 'configs'


@pytest.mark.parametrize('variant, published', [('tiny', '0.90'), ('b12', '2.65'), ('b24', '5.06'), ('b48', '9.88')])
def test_published_multiply_adds(variant, published):
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(CONFIGS / 'classification' / f'fcvit_{variant}_in1k.py')
    found = measure(cfg)
    assert found.shape == (224, 224)
    assert f'{found.flops / 1e9:.2f}' == published
    entries = yaml.safe_load((CONFIGS / 'classification' / 'metafile.yml').read_text())['Models']
    (recorded,) = (entry['Metadata'] for entry in entries if entry['Name'] == f'fcvit_{variant}_in1k')
    assert (found.params, found.flops) == (recorded['Parameters'], recorded['FLOPs'])
    assert [part.name for part in found.parts] == [
        'stem',
        'stage 1',
        'stage 2',
        'stage 3',
        'stage 4',
        'output norms',
        'neck',
        'head',
    ]
    assert sum(part.params for part in found.parts) == found.params
    assert sum(part.flops for part in found.parts) == found.flops


def test_known_layers_are_counted_exactly():
    """The stem by hand: 7x7 convolutions of 3 to 32 channels at 56x56 positions; BatchNorm counts nothing."""
    stem = measure(Config.fromfile(CONFIGS / 'classification' / 'fcvit_tiny_in1k.py')).parts[0]
    assert stem == ('stem', 7 * 7 * 3 * 32 + 32 + 2 * 32, 7 * 7 * 3 * 32 * 56 * 56)


def test_counting_leaves_no_random_state_behind():
    cfg = Config.fromfile(CONFIGS / 'classification' / 'fcvit_tiny_in1k.py')
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure(cfg, (64,))
    assert torch.equal(torch.rand(1), expected)


def test_config_of_another_library():
    with pytest.raises(UserError, match="default_scope='mmpose', expected one of"):
        measure(Config(dict(default_scope='mmpose', model=dict())))


def test_bytes_of_one_layer():
    """A linear layer without bias reads its input and weights and writes its output."""
    assert count_traffic(nn.Linear(8, 4, bias=False), torch.ones(2, 8)) == 4 * (2 * 8 + 8 * 4 + 2 * 4)


def test_traffic_counts_each_operation_once():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.ReLU()).to('meta')
    pixels = 10 * 10
    convolution = 3 * pixels + 3 * 4 + 4 * pixels
    # Flattening moves nothing.
    assert count_traffic(model, torch.empty(1, 3, 10, 10, device='meta')) == 4 * (convolution + 2 * 4 * pixels)


def test_attention_is_counted():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count_multiply_adds(Attention().eval(), torch.rand(2, 3, 10, 4))[''] == 2 * 3 * 10 * 10 * 4 * 2
