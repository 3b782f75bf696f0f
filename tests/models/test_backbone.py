"""What a small backbone of another package inherits from the base class; indices, variants, layouts."""

import pytest
import torch
import torch.nn as nn
from mmengine.model import PretrainedInit
from networks import images

import fcvit_mm
from fcvit_mm.models import Backbone
from fcvit_mm.models.backbone import normalize_indices, output_layout, resolve_arch
from fcvit_mm.models.stages import Stage


class Block(nn.Module):
    """A residual convolution with BatchNorm that records the layout of its input."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        self.was_channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return x + self.bn(self.mix(x)).relu()


class Two(Backbone):
    """A backbone of two stages, as another package would define it."""

    def __init__(self, out_indices=(0, 1), **options):
        channels = (8, 12)
        super().__init__(channels, (4, 8), out_indices, **options)
        self.stem = nn.Conv2d(self.in_channels, 8, 4, stride=4)
        self.stages = nn.ModuleList()
        for i in range(self.num_stages):
            downsample = nn.Identity() if i == 0 else nn.Conv2d(8, 12, 2, stride=2)
            self.stages.append(Stage(downsample, [Block(channels[i]), Block(channels[i])], self.with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.BatchNorm2d(channels[i]))
        self.freeze_stages()


class TwoInGivenLayout(Two):
    """The same backbone, computed in the layout of the images."""

    def prefers_channels_last(self, device):
        return False


def test_forward_is_stem_stages_and_norms():
    model = Two().eval()
    x = images(32, 48)
    first = model.stages[0](model.stem(x))
    second = model.stages[1](first)
    for found, expected in zip(model(x), (model.norm0(first), model.norm1(second))):
        torch.testing.assert_close(found, expected)
    for found, expected in zip(model.forward_stages(x), (first, second)):
        torch.testing.assert_close(found, expected)
    assert [y.shape[1] for y in model(x)] == list(model.out_channels) == [8, 12]
    (only,) = Two(out_indices=0)(x)
    assert only.shape == (2, 8, 8, 12)


def test_stages_are_computed_lazily():
    model = Two()
    model.stages[1] = nn.Identity()
    model.stages[1].forward = lambda x: pytest.fail('the second stage was not asked for')
    next(model.forward_stages(images(32, 32)))


@torch.no_grad()
@pytest.mark.parametrize('kind, inside', [(Two, True), (TwoInGivenLayout, False)])
def test_layout_of_blocks_and_outputs(kind, inside):
    model = kind().eval()
    for x in (images(32, 32), images(32, 40)[..., :32]):  # contiguous, and a view that is in no layout
        assert all(y.is_contiguous() for y in model(x))
        assert model.stages[0].blocks[0].was_channels_last == inside
    x = images(32, 32).contiguous(memory_format=torch.channels_last)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in model(x))
    assert model.stages[0].blocks[0].was_channels_last


def test_traced_outputs_are_contiguous():
    x = images(4, 4).contiguous(memory_format=torch.channels_last)
    assert output_layout(x) == torch.channels_last
    found = []
    torch.jit.trace(lambda x: found.append(output_layout(x)) or x, x)
    assert found[0] == torch.contiguous_format


def test_layers_for_learning_rate_decay():
    model = Two()
    for name, depth in {
        'backbone.stem.weight': 0,
        'backbone.stages.0.blocks.1.mix.weight': 2,
        'backbone.stages.1.downsample.weight': 3,
        'backbone.stages.1.blocks.0.bn.bias': 3,
        'backbone.norm0.weight': 5,
        'head.fc.weight': 5,
    }.items():
        assert model.get_layer_depth(name, 'backbone.') == (depth, 6), name


def test_frozen_stages_and_norm_eval():
    model = Two(frozen_stages=1).train()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith(('stages.1.', 'norm'))
    }
    assert not model.stages[0].blocks[0].bn.training and model.stages[1].blocks[0].bn.training
    assert not Two(norm_eval=True).train().norm0.training
    with pytest.raises(ValueError, match='frozen_stages is 3, expected .* up to 2'):
        Two(frozen_stages=3)
    with pytest.raises(ValueError, match=r'frozen_stages is 2, expected .* up to 1 .*out_indices=\(0,\) needs'):
        Two(frozen_stages=2, out_indices=0)


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_own_checkpoint_loads(kind, tmp_path):
    """Pure-Python configs have the class."""
    torch.manual_seed(0)
    model = Two()
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in model.state_dict().items()}}, tmp_path / 'a')
    twin = Two(init_cfg=dict(type=kind, checkpoint=str(tmp_path / 'a')))
    twin.init_weights()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in twin.state_dict().items())
    assert twin.init_cfg['type'] == kind, 'a second init_weights() loads again'


def test_init_cfg_without_a_checkpoint_is_applied(tmp_path):
    model = Two(init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
    model.init_weights()
    assert model.stem.weight.eq(0.5).all()


def test_can_be_optimized_for_inference():
    model = Two().eval()
    optimized = fcvit_mm.optimize_for_inference(model, images(32, 32))
    assert not any(parameter.requires_grad for parameter in optimized.parameters())


@pytest.mark.parametrize(
    'indices, expected', [(0, (0,)), (-1, (2,)), ((2, 0), (0, 2)), ([1], (1,)), ((-3, -1), (0, 2))]
)
def test_indices_are_normalized(indices, expected):
    assert normalize_indices(indices, 3) == expected


@pytest.mark.parametrize(
    'indices, error, match',
    [
        ((), ValueError, 'out_indices is empty, expected at least one of the 3 stages'),
        ((0, 3), ValueError, 'out_indices has 3, expected -3 to 2'),
        ((1, -2), ValueError, r'out_indices=\(1, -2\) contains a stage twice'),
        ((0.0,), TypeError, 'out_indices has 0.0'),
    ],
)
def test_bad_indices(indices, error, match):
    with pytest.raises(error, match=match):
        normalize_indices(indices, 3)


def test_arch_is_a_name_or_a_dict():
    rows = dict(settings={'small': dict(depths=(1, 2))}, per_stage=('depths',), defaults=dict(heads=8), num_stages=2)
    assert resolve_arch('Small', **rows) == dict(depths=(1, 2), heads=8)
    assert resolve_arch(dict(depths=(3, 4), heads=2), **rows) == dict(depths=(3, 4), heads=2)
    for arch, match in (
        ('large', r"unknown arch 'large', expected one of \['small'\]"),
        (3, 'arch is 3, expected one of'),
        (dict(heads=2), r"arch lacks \['depths'\]"),
        (dict(depths=(1, 2), width=3), r"unknown \['width'\]"),
        (dict(depths=(1,)), r'depths=\(1,\), expected 2 positive values'),
        (dict(depths=(1, 0)), r'depths=\(1, 0\), expected 2 positive values'),
    ):
        with pytest.raises(ValueError, match=match):
            resolve_arch(arch, **rows)
