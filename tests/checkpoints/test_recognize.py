"""The network of a file is recognized by its names alone, also if it is of another package."""

import pytest
import torch
from mmengine.runner import load_state_dict
from networks import NETWORKS, build, publish
from plain_net import Block, PlainNet
from reference import arguments, published
from uninitialized import uninitialized

import fcvit_mm
from fcvit_mm.checkpoints import CheckpointError, load_pretrained, recognize
from fcvit_mm.checkpoints.recognize import _build_names, arch_of, list_networks, name_arch, reference_names
from fcvit_mm.models.published_names import PublishedNames, Row
from fcvit_mm.models.variants import VARIANTS

HEADS = {'rpn_head.rpn_cls.weight': torch.ones(3, 4), 'neck.conv.weight': torch.ones(2)}


def files_of(row, **options):
    """Yield the state dict of a small network with our names, and with the published ones."""
    own = build(row, **options).state_dict()
    yield own
    yield row.type.published_names.to_published(own)


@pytest.mark.parametrize('dense', [True, False])
@pytest.mark.parametrize('network', NETWORKS)
def test_files_are_recognized_as_one_network_only(network, dense):
    """Of every small network, the published and our file are recognized, and by no other network equally well."""
    row = NETWORKS[network]
    own, theirs = files_of(row, **({} if dense else row.classifier))
    for state_dict, source in ((own, 'OpenMMLab'), (theirs, 'published')):
        for backbone in (None, PlainNet()):
            found = recognize(state_dict, 'a.pth', backbone=backbone)
            assert (found.network, found.source, found.unknown) == (row.type, source, ())
            assert set(found.backbone) == set(own)


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant_is_recognized(name):
    """Only names and shapes decide, so the weights are not initialized."""
    row = VARIANTS[name]
    if row.network.__name__ in ('ViT', 'CaiT', 'Swin'):
        pytest.importorskip('timm')
    with uninitialized():
        own = row.build().state_dict()
    arch = row.options['arch']
    assert name_arch(own, row.network).split(' ')[0] == arch
    assert arch_of(own)['channels'] == tuple(row.network.arch_settings[arch]['channels'])


def test_detector():
    prefixed = {f'backbone.{key}': value for key, value in published(dense=True).items()}
    found = recognize({'state_dict': {**prefixed, **HEADS}}, 'a.pth')
    assert (found.network, found.source, found.task) == (fcvit_mm.FCViT, 'published', 'detector')
    assert set(found.others) == set(HEADS) and not found.unknown
    assert found.arch == 'with depths (1, 1, 2, 1) and channels (16, 24, 32, 40)'
    model = fcvit_mm.FCViT(**arguments())
    load_state_dict(model, found.backbone, strict=True)


def test_network_without_a_table_is_recognized_by_its_own_names():
    found = recognize(PlainNet(depths=(3, 2)).state_dict(), 'a.pth')
    assert (found.network, found.source, found.unknown) == (PlainNet, 'OpenMMLab', ())
    assert found.arch == 'with depths (3, 2) and channels (8, 16)'


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.', '_orig_mod.'])
def test_network_without_a_table_loads_its_own_checkpoint(prefix, tmp_path):
    there = PlainNet()
    torch.save({'state_dict': {prefix + key: value for key, value in there.state_dict().items()}}, tmp_path / 'a.pth')
    here = PlainNet(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')))
    here.init_weights()
    assert all(torch.equal(value, there.state_dict()[key]) for key, value in here.state_dict().items())
    with pytest.raises(CheckpointError, match=r'is PlainNet with depths \(2, 1\) .* the backbone is PlainNet with'):
        load_pretrained(PlainNet(depths=(2, 2)), str(tmp_path / 'a.pth'))
    with pytest.raises(CheckpointError, match='is a PlainNet, the backbone is a FCViT'):
        load_pretrained(fcvit_mm.FCViT(**arguments()), str(tmp_path / 'a.pth'))


class Renamed(PlainNet):
    """A network that has some other names in published files."""

    published_names = PublishedNames(rows=(Row('features.*.convolution.*', 'stages.0.blocks.*.convolution.*'),))

    def __init__(self) -> None:
        super().__init__(depths=(2,), channels=(8,), out_indices=0)
        for block in self.stages[0].blocks:
            block.convolution = torch.nn.Conv2d(8, 8, 1)


def test_only_names_that_differ_need_a_row():
    own = Renamed().state_dict()
    theirs = {
        key.replace('stages.0.blocks', 'features') if '.convolution.' in key else key: value
        for key, value in own.items()
    }
    for state_dict, source in ((own, 'OpenMMLab'), (theirs, 'published')):
        found = recognize(state_dict, 'a.pth')
        assert (found.network, found.source, found.unknown) == (Renamed, source, ())
        assert set(found.backbone) == set(own)


class NeedsAnArgument(PlainNet):
    """A network that cannot be built without arguments, so its names are not known."""

    def __init__(self, width) -> None:
        super().__init__(depths=(1,), channels=(width,), out_indices=0)
        self.stages[0].blocks[0].extra = Block(width)


def test_network_that_needs_arguments_loads_its_own_checkpoint(tmp_path):
    there, here = NeedsAnArgument(8), NeedsAnArgument(8)
    assert reference_names(NeedsAnArgument) == () and NeedsAnArgument not in list_networks()
    torch.save(there.state_dict(), tmp_path / 'a.pth')
    load_pretrained(here, str(tmp_path / 'a.pth'))
    assert all(torch.equal(value, there.state_dict()[key]) for key, value in here.state_dict().items())


def test_deprecated_classes_are_not_listed():
    assert not {fcvit_mm.ScaledViT, fcvit_mm.ScaledCaiT, fcvit_mm.ScaledSwin}.intersection(list_networks())


def test_building_names_keeps_the_random_state():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert _build_names(fcvit_mm.FCViT, 'fcvit_tiny') == _build_names(fcvit_mm.FCViT, 'fcvit_tiny') != ()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    'name, parts',
    [
        ('ConvNeXt', ['conv_dw.weight', 'conv_dw.bias', 'gamma', 'norm.weight', 'norm.bias', 'mlp.fc1.weight']),
        ('Swin of mmdet', ['attn.w_msa.qkv.weight', 'attn.w_msa.proj.weight', 'norm1.weight', 'ffn.layers.1.weight']),
        ('PoolFormer', ['layer_scale_1', 'norm1.weight', 'norm1.bias', 'mlp.fc1.weight', 'mlp.fc2.weight']),
    ],
)
def test_networks_of_other_packages_are_not_recognized_as_ours(name, parts):
    root = 'network.0.0' if name == 'PoolFormer' else 'stages.0.blocks.0'
    with pytest.raises(CheckpointError, match='nothing in common with FCViT, DWNet, ViT, CaiT, Swin'):
        recognize({f'{root}.{part}': torch.ones(4) for part in parts}, 'a.pth')


# Of one part and of several for each network.
PREFIXES = [
    *(('fcvit', prefix) for prefix in ('student.', 'model.', 'a.b.c.')),
    *(('dwnet', prefix) for prefix in ('net.', 'timm_model.', 'base_model.model.')),
    *(('vit', prefix) for prefix in ('encoder.', 'm.', 'model.net.')),
]


@pytest.mark.parametrize('name, prefix', PREFIXES)
def test_prefix_of_a_wrapper_is_found(name, prefix):
    model = build(NETWORKS[name])
    head = {'head.fc.weight': torch.rand(5, 8), 'head.fc.bias': torch.rand(5)}
    ours = {**{f'backbone.{key}': value for key, value in model.state_dict().items()}, **head}
    published = {**publish(model), 'head.weight': head['head.fc.weight'], 'head.bias': head['head.fc.bias']}
    for weights in (ours, published):
        found = recognize({prefix + key: value for key, value in weights.items()}, 'file')
        assert found.network is NETWORKS[name].type and not found.unknown and found.task == 'classifier'
        assert found.prefix == prefix + ('backbone.' if weights is ours else '')
        for key, value in model.state_dict().items():
            assert torch.equal(found.backbone[key], value)
        assert all(torch.equal(found.others[key], value) for key, value in head.items())


def test_two_matching_prefixes_are_refused():
    weights = build(NETWORKS['fcvit']).state_dict()
    both = {prefix + key: value for prefix in ('student.', 'teacher.net.') for key, value in weights.items()}
    with pytest.raises(CheckpointError, match="after each of 'student.', 'teacher.net.': give one of them as prefix"):
        recognize(both, 'file')
    assert recognize(both, 'file', prefix='teacher.net').prefix == 'teacher.net.'
