"""Effective receptive fields: of convolutions with known fields, and of different networks."""

import numpy as np
import pytest
import torch
import torch.nn as nn
from networks import TRANSFORMERS, build_random

import fcvit_mm
from fcvit_mm.analysis.plots import figure_png, to_json_data
from fcvit_mm.analysis.receptive_field import describe_fields, draw_fields, receptive_fields, square_shares
from fcvit_mm.analysis.recording import AnalysisError

MICRO_FCVIT = dict(depths=(1, 2, 1, 1), channels=(16, 16, 32, 32), mlp_ratios=(2, 2, 2, 2))


def conv(size=3, stride=1, channels=(3, 3)):
    layer = nn.Conv2d(*channels, size, stride, padding=size // 2, bias=False)
    nn.init.ones_(layer.weight)
    return layer


@pytest.fixture
def image():
    return torch.randn(1, 3, 31, 31, generator=torch.Generator().manual_seed(0))


def test_fields_of_convolutions_are_their_windows(image):
    found = receptive_fields(nn.Sequential(conv(), conv(), conv(5)), [image], ['0', '1', '2'])
    assert [field.reach for field in found.values()] == [(3, 3), (5, 5), (9, 9)]
    first = found['0']
    assert first.position == (15, 15) and first.grid == (31, 31)
    expected = np.zeros((31, 31))
    expected[14:17, 14:17] = 1 / 9
    np.testing.assert_allclose(first.mass, expected)
    # A square of 4 of 9 equal pixels has less than half of the sum.
    assert first.squares[0.5] == first.squares[0.95] == (14, 14, 3)
    # Two 3x3 kernels of ones: 1, 2, 3, 2, 1 in each direction, the sum is 81; the central 3x3 has 49, and 4x4 has 64.
    assert found['1'].squares[0.5].side == 3 and found['1'].squares[0.95].side == 5
    np.testing.assert_allclose(found['1'].shares[:5], np.array([9, 25, 49, 64, 81]) / 81)


def test_fields_with_strides_and_negative_weights(image):
    strided = nn.Sequential(conv(7, 4), conv(3, 2))
    found = receptive_fields(strided, [image], ['0', '1'])
    assert [field.reach for field in found.values()] == [(7, 7), (15, 15)]
    # The magnitudes are used for a kernel with both signs.
    layer = conv(channels=(3, 1))
    with torch.no_grad():
        layer.weight[:, :, 0] = -1
    field = receptive_fields(nn.Sequential(layer), [image], ['0'])['0']
    assert field.mass.min() == 0 and np.isclose(field.mass.max(), 1 / 9)


def test_best_squares_agree_with_brute_force():
    mass = np.random.default_rng(0).random((5, 7))
    shares, corners = square_shares(mass)
    for side in range(1, 8):
        sums = [
            mass[top : top + side, left : left + side].sum()
            for top in range(7 - side + 1)
            for left in range(7 - side + 1)
        ]
        assert shares[side - 1] == pytest.approx(max(sums) / mass.sum())
        top, left = corners[side - 1]
        assert mass[top : top + side, left : left + side].sum() == pytest.approx(max(sums))
    assert shares[-1] == pytest.approx(1) and (np.diff(shares) >= -1e-12).all()


def test_fields_are_averaged_over_images(image):
    class Gate(nn.Module):
        """A 3x3 convolution for dark images, a 1x1 convolution for bright ones."""

        def __init__(self):
            super().__init__()
            self.wide, self.narrow = conv(), conv(1)

        def forward(self, x):
            return self.wide(x) if x.mean() < 0 else self.narrow(x)

    network = nn.Sequential(Gate())
    dark, bright = image - 10, image + 10
    mass = receptive_fields(network, [dark, bright], ['0'])['0'].mass
    # Gradients are added and then divided by their sum: 9 pixels of one image and 1 pixel of the other, all equal.
    assert mass[15, 15] == pytest.approx(2 / 10) and mass[14, 14] == pytest.approx(1 / 10)


def test_default_layers_are_the_last_of_each_stage():
    network = fcvit_mm.FCViT(MICRO_FCVIT)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if 'layer_scale' in name:
                parameter.fill_(0.5)
    network.train()
    found = receptive_fields(network, [torch.randn(3, 96, 64)])
    assert list(found) == ['stages.0.blocks.0', 'stages.1.blocks.1', 'stages.2.blocks.0', 'stages.3.blocks.0']
    # The global context reads the entire image, but most of the gradient is near the position.
    assert found['stages.0.blocks.0'].reach == (96, 64) and found['stages.0.blocks.0'].squares[0.5].side < 64
    assert all(field.mass.sum() == pytest.approx(1) for field in found.values())
    # The network is unchanged.
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    rows = to_json_data(describe_fields(found))
    assert rows[0]['side_of_share'].keys() == {'0.5', '0.95'} and rows[0]['input'] == [96, 64]
    assert len(rows[0]['share_by_side']) == 96
    assert figure_png(draw_fields(found, 'fields')).startswith(b'\x89PNG')


def test_field_of_dwnet_is_its_window():
    # A window of 7x7 patches of 4x4 pixels.
    network = fcvit_mm.DWNet(dict(depths=(1, 1, 1, 1), channels=(8, 8, 16, 16)))
    found = receptive_fields(network, [torch.randn(3, 112, 112)])
    assert len(found) == 4 and found['stages.0.blocks.0'].reach == (28, 28)


def test_default_layers_of_a_network_with_one_stage():
    timm = pytest.importorskip('timm')
    network = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=6).eval()
    found = receptive_fields(network, [torch.randn(3, 32, 32)])
    assert list(found) == ['blocks.0', 'blocks.2', 'blocks.3', 'blocks.5']
    assert found['blocks.0'].grid == (2, 2) and found['blocks.0'].reach == (32, 32)


def test_unsuitable_layers_and_images_are_refused(image):
    network = nn.Sequential(conv(), nn.Flatten(2))
    with pytest.raises(AnalysisError, match="no layer '7'"):
        receptive_fields(network, [image], ['7'])
    with pytest.raises(AnalysisError, match=r'\(31, 31\) and \(31, 20\) pixels.*give a size'):
        receptive_fields(network, [image, image[..., :20]], ['0'])
    with pytest.raises(AnalysisError, match='no images given, expected at least one: give image files'):
        receptive_fields(network, [], ['0'])
    silent = nn.Sequential(conv())
    nn.init.zeros_(silent[0].weight)
    with pytest.raises(AnalysisError, match='gradients of 0 of Sequential add up to 0.0 in magnitude'):
        receptive_fields(silent, [image], ['0'])

    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(1, 2, 4, 4)

    with pytest.raises(AnalysisError, match='does not depend on the image'):
        receptive_fields(nn.Sequential(Constant()), [image], ['0'])
    with pytest.raises(AnalysisError, match='neither a map .*: choose other layers'):
        receptive_fields(network, [image], ['1'])


@pytest.mark.parametrize('kind', TRANSFORMERS)
def test_fields_of_transformers(kind):
    found = receptive_fields(build_random(TRANSFORMERS[kind]), [torch.randn(3, 32, 32)])
    # The class attention of CaiT returns no map, so it is not a layer.
    assert len(found) in (2, 3, 4) and not any(
        name.startswith(('stages.1', 'blocks_token')) and 'cait' in kind for name in found
    )
    assert all(field.squares[0.5].side <= field.squares[0.95].side <= 32 for field in found.values())
