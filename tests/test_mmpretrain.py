"""`import fcvit_mm.mmpretrain` registers the classifiers in mmpretrain."""

import importlib
import importlib.util

import pytest
import torch
from mmengine.registry import MODELS

pytest.importorskip('mmpretrain')
import mmpretrain
from mmpretrain.apis.model import ModelHub
from plain_net import PlainNet, temporary_variants

import fcvit_mm.mmpretrain as hub
from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.models.variants import VARIANTS, Variant, register_variant

NAMES = ['fcvit_b12_in1k', 'fcvit_b24_in1k', 'fcvit_b48_in1k', 'fcvit_tiny_in1k']


def test_models_are_listed():
    assert mmpretrain.list_models('fcvit*') == NAMES
    assert mmpretrain.list_models('fcvit', task='Image Classification') == NAMES
    assert mmpretrain.list_models('*dwnet*') == sorted(
        f'{kind}dwnet_{size}_in1k' for kind in ('', 'dynamic_', 'inhomogeneous_') for size in ('base', 'tiny')
    )


def test_models_of_mmpretrain_are_still_listed():
    assert mmpretrain.list_models('resnet50_8xb32_in1k')


def test_detectors_and_segmentors_are_not_listed():
    assert not mmpretrain.list_models('*_coco')
    assert not mmpretrain.list_models('*fcvit*ade20k')


def test_model_is_built_by_its_name():
    model = mmpretrain.get_model('fcvit_tiny_in1k', head=dict(num_classes=10))
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_784_752 - 321 * 990
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 10)
    assert ModelHub.get('fcvit_tiny_in1k').results[0].metrics == {'Top 1 Accuracy': 74.9}


def test_checkpoint_is_loaded_by_path(tmp_path):
    torch.manual_seed(0)
    model = mmpretrain.get_model('fcvit_tiny_in1k')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tiny.pth')
    again = mmpretrain.get_model('fcvit_tiny_in1k', pretrained=str(tmp_path / 'tiny.pth'))
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
    assert torch.equal(again.backbone.stem.proj.weight, model.backbone.stem.proj.weight)


def test_published_weights_by_name(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = mmpretrain.get_model('fcvit_tiny_in1k')
    backbone = model.backbone.published_names.to_published(model.backbone.state_dict())
    head = {f'head.{key}': value for key, value in model.head.fc.state_dict().items()}
    torch.save({'state_dict': {**backbone, **head}, 'epoch': 299}, tmp_path / 'fcvit_tiny.pth')
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', str(tmp_path))
    again = mmpretrain.get_model('fcvit_tiny_in1k', pretrained=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match='open https://drive.google.com/.* save it as'):
        mmpretrain.get_model('fcvit_b12_in1k', pretrained=True)
    assert ModelHub.get('inhomogeneous_dwnet_tiny_in1k').weights is None


def test_every_variant_with_a_config_is_listed():
    expected = {row.hub_name for row in VARIANTS.values() if row.config is not None}
    assert len(expected) == 22 and expected <= set(mmpretrain.list_models())


def test_classifier_of_another_package(tmp_path):
    config = tmp_path / 'plain_net.py'
    config.write_text(
        "model = dict(type='ImageClassifier', backbone=dict(type='PlainNet', out_indices=(1,)),\n"
        "             neck=dict(type='GlobalAveragePooling'),\n"
        "             head=dict(type='LinearClsHead', num_classes=3, in_channels=16))\n"
    )
    MODELS.register_module(module=PlainNet, force=True)
    row = Variant('plain_net', PlainNet, dict(out_indices=(1,)), 0.9, 'arXiv:0', 'Others', config=str(config))
    try:
        with temporary_variants():
            register_variant(row)
            register_variant(row._replace(name='without_config', config=None))
        assert mmpretrain.list_models('plain_net*') == ['plain_net_in1k']
        assert not mmpretrain.list_models('without_config*')
        model = mmpretrain.get_model('plain_net_in1k')
        assert isinstance(model.backbone, PlainNet) and model(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    finally:
        ModelHub._models_dict.pop('plain_net_in1k', None)
        MODELS._module_dict.pop('PlainNet', None)


def test_registering_twice_changes_nothing():
    before = dict(ModelHub._models_dict)
    hub.register()
    importlib.reload(hub)
    assert ModelHub._models_dict == before


def test_model_index_is_found_in_mim_or_beside_the_package(tmp_path, monkeypatch):
    package = tmp_path / 'fcvit_mm'
    (package / '.mim').mkdir(parents=True)
    monkeypatch.setattr(hub, '__file__', str(package / 'mmpretrain.py'))
    with pytest.raises(FileNotFoundError, match='no model-index.yml in .*install fcvit_mm from a wheel'):
        hub.index_root()
    (tmp_path / 'model-index.yml').touch()
    assert hub.index_root() == tmp_path
    (package / '.mim' / 'model-index.yml').touch()
    assert hub.index_root() == package / '.mim'


def test_missing_mmpretrain_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'mmpretrain is not installed.*\.\[cls\]'):
        hub.register()
