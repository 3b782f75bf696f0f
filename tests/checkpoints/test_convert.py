"""Conversion, from published files of every kind to files that load strictly."""

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from plain_net import PlainNet
from reference import arguments, paddle, published

import fcvit_mm
from fcvit_mm.checkpoints import CheckpointError, convert_checkpoint
from fcvit_mm.errors import UserError
from fcvit_mm.files import WriteError

ROOT = Path(__file__).resolve().parents[2]


def convert(source, destination, **options) -> dict:
    """Convert a file, and read the result with ``weights_only=True``."""
    convert_checkpoint(str(source), str(destination), **options)
    return torch.load(destination, map_location='cpu', weights_only=True)


def refused(source, destination, **options) -> str:
    """Return the message of the error, and check that nothing was written."""
    before = set(os.listdir(Path(destination).parent))
    with pytest.raises(UserError) as error:
        convert_checkpoint(str(source), str(destination), **options)
    assert set(os.listdir(Path(destination).parent)) == before
    return str(error.value)


def build(config, scope):
    pytest.importorskip(scope)
    module = __import__(f'{scope}.utils', fromlist=['register_all_modules'])
    module.register_all_modules(init_default_scope=False)
    model = Config.fromfile(ROOT / 'configs' / config).model
    model.backbone.init_cfg = None
    for name in ('decode_head', 'auxiliary_head'):  # narrow, for the time that it takes
        if name in model:
            model[name].channels = 16
    heads = model.get('roi_head', {}).get('bbox_head', [])
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 32
    with DefaultScope.overwrite_default_scope(scope):
        torch.manual_seed(0)
        return MODELS.build(model)


def publish(model, classifier=False) -> OrderedDict:
    """Return the state dict of a model with the published names."""
    backbone = model.backbone.published_names.to_published(model.backbone.state_dict())
    state_dict = OrderedDict((key if classifier else f'backbone.{key}', value) for key, value in backbone.items())
    for key, value in model.state_dict().items():
        if not key.startswith('backbone.'):
            state_dict[key.replace('head.fc.', 'head.') if classifier else key] = value
    return state_dict


def load_strictly(model, path, expected) -> None:
    """Check that MMEngine's strict loading replaces all weights of a model by the expected ones."""
    for parameter in model.parameters():
        parameter.data.zero_()
    load_checkpoint(model, str(path), map_location='cpu', strict=True)
    state_dict = model.state_dict()
    assert set(state_dict) == set(expected)
    assert all(torch.equal(state_dict[key], expected[key]) for key in expected)


@pytest.mark.parametrize('origin', ['timm', 'paddle'])
@pytest.mark.parametrize('arch', ['tiny', 'b12'])
def test_classifier(arch, origin, tmp_path):
    model = build(f'classification/fcvit_{arch}_in1k.py', 'mmpretrain')
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = publish(model, classifier=True)
    if origin == 'timm':
        source = tmp_path / 'model_best.pth.tar'
        torch.save(
            {
                'state_dict': {f'module.{key}': value for key, value in theirs.items()},
                'epoch': 299,
                'arch': f'fcvit_{arch}',
                'args': argparse.Namespace(lr=1e-3),
                'optimizer': {'state': {}},
            },
            source,
        )
    else:
        source = tmp_path / 'fcvit.pdparams'
        source.write_bytes(pickle.dumps(paddle(theirs), protocol=4))
    written = convert(source, tmp_path / 'out.pth')
    load_strictly(model, tmp_path / 'out.pth', expected)
    assert set(written) == {'state_dict', 'meta'}
    assert all(isinstance(value, str) for value in written['meta'].values())

    meta = written['meta']
    assert (meta['network'], meta['arch'], meta['task']) == ('FCViT', arch, 'classifier')
    assert meta['tensors'] == str(len(expected)) and meta.get('epoch') == ('299' if origin == 'timm' else None)


@pytest.mark.parametrize(
    'config, scope, task',
    [
        ('detection/mask_rcnn_fcvit_tiny_coco.py', 'mmdet', 'detector'),
        ('detection/retinanet_fcvit_b12_coco.py', 'mmdet', 'detector'),
        ('segmentation/sem_fpn_fcvit_tiny_ade20k.py', 'mmseg', 'segmentor'),
        ('segmentation/upernet_fcvit_tiny_ade20k.py', 'mmseg', 'segmentor'),
        ('detection/cascade_mask_rcnn_dynamic_dwnet_tiny_3x_coco.py', 'mmdet', 'detector'),
        ('segmentation/upernet_dwnet_tiny_ade20k.py', 'mmseg', 'segmentor'),
    ],
)
def test_detector_and_segmentor(config, scope, task, tmp_path):
    model = build(config, scope)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    meta = {'epoch': 12, 'CLASSES': ('cat', 'dog'), 'PALETTE': [[1, 2, 3]], 'config': 'text'}
    torch.save({'meta': meta, 'state_dict': publish(model)}, tmp_path / 'a.pth')
    written = convert(tmp_path / 'a.pth', tmp_path / 'out.pth')
    load_strictly(model, tmp_path / 'out.pth', expected)
    assert written['meta']['task'] == task
    assert written['meta']['CLASSES'] == ('cat', 'dog') and written['meta']['PALETTE'] == [[1, 2, 3]]
    assert 'config' not in written['meta']


@pytest.mark.parametrize('kind', ['', 'inhomogeneous_'])
def test_classifier_of_dwnet(kind, tmp_path):
    model = build(f'classification/{kind}dwnet_tiny_in1k.py', 'mmpretrain')
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({'model': publish(model, classifier=True), 'epoch': 299}, tmp_path / 'a.pth')
    meta = convert(tmp_path / 'a.pth', tmp_path / 'out.pth')['meta']
    load_strictly(model, tmp_path / 'out.pth', expected)
    assert (meta['network'], meta['task']) == ('DWNet', 'classifier')
    assert meta['arch'] == f'tiny ({"inhomogeneous" if kind else "static"})'
    theirs = publish(model, classifier=True)
    del theirs['layers.0.downsample.reduction.weight']
    torch.save(theirs, tmp_path / 'b.pth')
    assert 'classifier: stages.1.downsample.reduction.weight missing' in refused(tmp_path / 'b.pth', tmp_path / 'c.pth')


def test_own_checkpoint_is_stripped_to_its_weights(tmp_path):
    backbone = fcvit_mm.FCViT(**arguments())
    state_dict = {
        **{f'backbone.{key}': value for key, value in backbone.state_dict().items()},
        'head.fc.weight': torch.ones(2, 40),
        'head.fc.bias': torch.zeros(2),
    }
    torch.save(
        {
            'state_dict': state_dict,
            'optimizer': {'state': {0: torch.ones(10**6)}},
            'meta': {
                # mmseg writes a label_map if a config chooses classes: its keys are numbers, and it is not kept.
                'dataset_meta': {
                    'classes': ('a', 'b'),
                    'palette': np.uint8([[1, 2, 3], [4, 5, 6]]),
                    'label_map': {0: 0},
                },
                'epoch': 3,
            },
        },
        tmp_path / 'epoch_3.pth',
    )
    written = convert(tmp_path / 'epoch_3.pth', tmp_path / 'out.pth')
    assert set(written['state_dict']) == set(state_dict)
    assert written['meta']['dataset_meta'] == {'classes': ('a', 'b'), 'palette': [[1, 2, 3], [4, 5, 6]]}
    assert os.path.getsize(tmp_path / 'out.pth') < 10**6
    assert written['meta']['source'] == 'OpenMMLab'


def test_bare_backbone(tmp_path):
    torch.save(published(dense=True), tmp_path / 'a.pth')
    written = convert(tmp_path / 'a.pth', tmp_path / 'out.pth')
    fcvit_mm.FCViT(**arguments()).load_state_dict(written['state_dict'], strict=True)
    assert written['meta']['task'] == 'backbone'


def test_converting_twice_changes_nothing(tmp_path):
    torch.save({'state_dict': published()}, tmp_path / 'a.pth')
    once = convert(tmp_path / 'a.pth', tmp_path / 'b.pth')['state_dict']
    twice = convert(tmp_path / 'b.pth', tmp_path / 'c.pth')['state_dict']
    assert list(once) == list(twice)
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_averaged_weights(tmp_path):
    averaged = {key: torch.full_like(value, 2) for key, value in published().items()}
    torch.save({'state_dict': published(), 'state_dict_ema': averaged}, tmp_path / 'a.pth')
    trained = convert(tmp_path / 'a.pth', tmp_path / 'trained.pth')
    assert torch.equal(trained['state_dict']['head.fc.bias'], published()['head.bias'])
    assert '--ema takes them' in trained['meta']['weights']
    ema = convert(tmp_path / 'a.pth', tmp_path / 'ema.pth', ema=True)
    assert ema['state_dict']['head.fc.bias'].eq(2).all()
    assert ema['meta']['weights'] == 'averaged (EMA) weights, state_dict_ema'
    torch.save({'state_dict': published()}, tmp_path / 'b.pth')
    assert 'has no averaged (EMA) weights' in refused(tmp_path / 'b.pth', tmp_path / 'c.pth', ema=True)


def test_only_the_values_of_a_view_are_written(tmp_path):
    big = torch.zeros(10**6)
    state_dict = published()
    state_dict['norm.bias'] = big[:40]
    torch.save({'state_dict': state_dict}, tmp_path / 'a.pth')
    convert(tmp_path / 'a.pth', tmp_path / 'out.pth')
    assert os.path.getsize(tmp_path / 'out.pth') < 2 * 10**6 < os.path.getsize(tmp_path / 'a.pth')


def test_existing_file_is_overwritten_only_with_force(tmp_path):
    torch.save({'state_dict': published()}, tmp_path / 'a.pth')
    (tmp_path / 'out.pth').write_text('precious')
    message = refused(tmp_path / 'a.pth', tmp_path / 'out.pth')
    assert 'out.pth already exists: give another name, or --force' in message
    assert (tmp_path / 'out.pth').read_text() == 'precious'
    with pytest.raises(FileExistsError):
        convert(tmp_path / 'a.pth', tmp_path / 'out.pth')
    convert(tmp_path / 'a.pth', tmp_path / 'out.pth', force=True)
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'out.pth']


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def fail(content, path):
        Path(path).write_text('half')
        raise OSError('No space left on device')

    torch.save({'state_dict': published()}, tmp_path / 'a.pth')
    monkeypatch.setattr('fcvit_mm.checkpoints.convert.torch.save', fail)
    with pytest.raises(WriteError, match='out.pth could not be written: No space left'):
        convert(tmp_path / 'a.pth', tmp_path / 'out.pth')
    assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize(
    'destination, message',
    [('nowhere/out.pth', 'nowhere is not a directory'), ('.', 'is a directory: give a file name')],
)
def test_invalid_destination_is_refused(destination, message, tmp_path):
    torch.save({'state_dict': published()}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / 'a.pth', tmp_path / destination, force=True)


def without(*keys) -> dict:
    return {key: value for key, value in published().items() if key not in keys}


@pytest.mark.parametrize(
    'state_dict, message',
    [
        ({'conv1.weight': torch.ones(1)}, 'named conv1.weight. Give a checkpoint of one of these networks, or import'),
        (
            {**published(), 'network.0.0.surprise': torch.ones(1)},
            'neither to FCViT nor to a known head or neck: network.0.0.surprise. Remove them from the file',
        ),
        (without('head.bias'), 'is an incomplete classifier: head.fc.bias missing'),
        (without('norm.weight', 'norm.bias'), 'classifier: norm3.weight, norm3.bias missing'),
        (without('patch_embed.norm.running_mean'), 'classifier: stem.norm.running_mean missing'),
        (without('network.4.1.layer_scale_1'), 'classifier: stages.2.blocks.1.layer_scale1 missing'),
        (
            {key: value for key, value in published().items() if not key.startswith('network.2.')},
            'classifier: stages.1.blocks.0.',
        ),
        (
            {
                **{f'backbone.{key}': value for key, value in published(dense=True).items()},
                'neck.conv.weight': torch.ones(1),
            },
            'a neck (neck.conv.weight) but no head, from which the task is recognized: give the file of the complete m',
        ),
        (
            {
                'teacher.head': torch.ones(1),
                **{f'backbone.{key}': value for key, value in published(dense=True).items()},
            },
            'known head or neck: teacher.head',
        ),
    ],
)
def test_unrecognized_or_incomplete_weights_are_refused(state_dict, message, tmp_path):
    torch.save({'state_dict': state_dict}, tmp_path / 'a.pth')
    assert message in refused(tmp_path / 'a.pth', tmp_path / 'out.pth')


def test_paddle_detector_is_refused(tmp_path):
    content = {f'backbone.{key}': value for key, value in paddle(published(dense=True)).items() if '@@' not in key}
    content['bbox_head.fc.weight'] = content['backbone.norm0.weight']
    (tmp_path / 'a.pdparams').write_bytes(pickle.dumps(content, protocol=4))
    message = refused(tmp_path / 'a.pdparams', tmp_path / 'out.pth')
    assert 'is a Paddle detector, expected a classifier' in message and 'give it as pretrained=FILE' in message
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pdparams'))
    fcvit_mm.FCViT(**arguments(), init_cfg=pretrained).init_weights()


class Attack:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize('origin', ['torch', 'torch before 1.6', 'paddle'])
def test_code_in_the_source_does_not_run(origin, tmp_path):
    content = {'state_dict': published(), 'args': Attack(tmp_path / 'ran')}
    if origin == 'paddle':
        (tmp_path / 'a').write_bytes(pickle.dumps({**paddle(published()), 'a': Attack(tmp_path / 'ran')}, protocol=4))
    else:
        torch.save(content, tmp_path / 'a', _use_new_zipfile_serialization=origin == 'torch')
    message = refused(tmp_path / 'a', tmp_path / 'out.pth')
    assert 'mkdir' in message and 'Rejected' in message
    assert not (tmp_path / 'ran').exists()


def test_convert_checkpoint_returns_a_summary(tmp_path):
    torch.save({'state_dict': published(), 'epoch': 5}, tmp_path / 'a.pth')
    summary = convert_checkpoint(str(tmp_path / 'a.pth'), str(tmp_path / 'out.pth'))
    assert summary['network'] == 'FCViT' and summary['epoch'] == '5' and summary['tensors'] == '212'


def test_networks_without_a_table_of_names_are_converted(tmp_path):
    """A complete file has the parts of the network as it is built."""
    network = PlainNet
    torch.save(
        {'state_dict': {f'module.backbone.{key}': value for key, value in network().state_dict().items()}, 'meta': {}},
        tmp_path / 'a.pth',
    )
    written = convert(tmp_path / 'a.pth', tmp_path / 'out.pth')
    network().load_state_dict(written['state_dict'])
    assert (written['meta']['network'], written['meta']['task']) == ('PlainNet', 'backbone')
    state_dict = network().state_dict()
    del state_dict['stem.weight'], state_dict['stages.0.blocks.1.conv.weight']
    torch.save(state_dict, tmp_path / 'b.pth')
    assert 'backbone: stem.weight, stages.0.blocks.1.conv.weight missing' in refused(
        tmp_path / 'b.pth', tmp_path / 'c.pth'
    )
