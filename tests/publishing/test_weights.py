"""Published weights give the same predictions, and the files contain only weights and plain data."""

import hashlib
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import LIBRARIES, write_config
from mmengine.hooks import EMAHook
from mmengine.runner import load_checkpoint
from published import ARCH, CLASSES, MICRO, main, publish, random_weights, write_checkpoint

import fcvit_mm
from fcvit_mm.apis.draw import build_drawer
from fcvit_mm.apis.load import build_model
from fcvit_mm.checkpoints import CheckpointError, convert_checkpoint, read_checkpoint
from fcvit_mm.engine.config import load_config
from fcvit_mm.files import WriteError
from fcvit_mm.publishing.weights import pack, strip_checkpoint, write_files


@pytest.mark.parametrize('task', LIBRARIES)
def test_published_weights_give_the_same_predictions(task, tmp_path):
    pytest.importorskip(LIBRARIES[task])
    pytest.importorskip('safetensors')
    config = write_config(task, tmp_path, tmp_path, MICRO.format(arch=ARCH))

    def draw(checkpoint):
        cfg = load_config(str(config))
        image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        return build_drawer(cfg, str(checkpoint), 'cpu', score_thr=0.0)(image)

    classes = (*CLASSES, *(['background'] if task == 'segmentation' else []))
    model = build_model(load_config(str(config)))
    source = write_checkpoint(tmp_path / 'epoch_3.pth', random_weights(model), classes)
    expected = draw(source)
    files = publish(source, tmp_path, '--safetensors')
    for suffix in ('.pth', '.safetensors'):
        np.testing.assert_array_equal(draw(files[suffix]), expected)
    # MMEngine loads them strictly, without this package.
    content = torch.load(files['.pth'], weights_only=True)
    assert content['meta']['dataset_meta']['classes'] == classes
    load_checkpoint(model, str(files['.pth']), strict=True)
    original = torch.load(source, weights_only=False)['state_dict']
    assert all(torch.equal(original[name], value) for name, value in model.state_dict().items())


def test_file_contains_only_weights_and_plain_data(micro, tmp_path):
    path = publish(micro.checkpoint, tmp_path)['.pth']
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] == re.fullmatch(r'micro-([0-9a-f]{8})\.pth', path.name)[1]
    assert path.stat().st_size < os.path.getsize(micro.checkpoint) / 1.8
    content = torch.load(path, weights_only=True)
    assert set(content) == {'state_dict', 'meta'}
    meta = content['meta']
    # Everything else is not plain data, or cannot be written as JSON.
    assert meta['dataset_meta'] == dict(classes=CLASSES, palette=[[255, 0, 0]] * 5, sizes=[[1.5]])
    assert (meta['epoch'], meta['seed']) == (3, 7) and not {'cfg', 'hook_msgs'} & set(meta)
    assert b'somebody' not in path.read_bytes()
    # The same weights get the same name, and existing files are not overwritten.
    with pytest.raises(CheckpointError, match=r'micro-[0-9a-f]{8}\.md, .* already exist: .* --force to overwrite them'):
        publish(micro.checkpoint, tmp_path)
    assert publish(micro.checkpoint, tmp_path, '--force') == {}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_backbone_is_initialized_from_published_weights(micro, tmp_path, suffix):
    pytest.importorskip('safetensors')
    path = publish(micro.checkpoint, tmp_path, '--safetensors')[suffix]
    backbone = fcvit_mm.FCViT(ARCH, out_indices=(3,), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()
    weights = read_checkpoint(micro.checkpoint)['state_dict']
    assert all(torch.equal(weights[f'backbone.{name}'], value) for name, value in backbone.state_dict().items())


def test_ema_weights_are_published_by_default(micro, tmp_path):
    """MMEngine's EMAHook saves the averaged weights, which validation used, as ``state_dict``."""
    model = build_model(load_config(micro.config))
    hook, runner = EMAHook(momentum=0.5), SimpleNamespace(model=model, iter=0)
    hook.before_run(runner)
    for value in (1.0, 3.0):
        for parameter in model.parameters():
            parameter.data.fill_(value)
        runner.iter += 1
        hook.after_train_iter(runner, 0)
    checkpoint = dict(state_dict=model.state_dict(), meta={})
    hook.before_save_checkpoint(runner, checkpoint)
    source = tmp_path / 'ema.pth'
    torch.save(checkpoint, source)

    name = 'backbone.stem.proj.weight'
    for options, expected, word in ((), 2.0, 'averaged (EMA)'), (('--no-ema',), 3.0, 'as trained, not averaged (EMA)'):
        folder = tmp_path / word.split()[0]
        folder.mkdir()
        files = publish(source, folder, *options)
        content = torch.load(files['.pth'], weights_only=True)
        assert set(content) == {'state_dict', 'meta'} and set(content['state_dict']) == set(model.state_dict())
        assert content['state_dict'][name].unique().tolist() == [expected]
        assert f'| weights | {word} |' in files['.md'].read_text()
        again = strip_checkpoint(str(files['.pth']))  # a published file contains this information
        assert (again.weights, again.validated) == (word, not options)
    convert_checkpoint(str(source), str(tmp_path / 'converted.pth'))
    assert strip_checkpoint(str(tmp_path / 'converted.pth')).weights == 'averaged (EMA)'
    with pytest.raises(CheckpointError, match='only one set of weights, as written by a run without EMAHook'):
        strip_checkpoint(micro.checkpoint, ema=False)
    torch.save(dict(checkpoint, ema_state_dict={'module.other': torch.ones(1)}), source)
    with pytest.raises(
        CheckpointError, match=r'does not belong to its state_dict \(other\), .*: omit --no-ema to publish'
    ):
        strip_checkpoint(str(source), ema=False)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: torch.save(dict(state_dict=dict(a=Bomb(path.parent / 'boom'))), path), 'mkdir, .* Rejected'),
        (lambda path: path.write_text('no checkpoint at all'), 'is text that begins with'),
        (
            lambda path: torch.save({'a': torch.ones(1)}, path),
            'has no state_dict among its keys a, .*convert_checkpoint',
        ),
        (
            lambda path: torch.save(dict(state_dict={}), path),
            'has no tensors in its state_dict, only nothing: give a checkpoint',
        ),
        (lambda path: torch.save(dict(state_dict=dict(a=torch.tensor([1.0, float('nan')]))), path), 'NaN or infinite'),
    ],
)
def test_invalid_checkpoints_are_refused(make, message, tmp_path):
    (tmp_path / 'out').mkdir()
    make(tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        publish(tmp_path / 'a.pth', tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir()) and not (tmp_path / 'boom').exists()


def test_corrupt_metadata_of_safetensors_is_refused(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file({'a': torch.ones(1)}, tmp_path / 'a.safetensors', {'fcvit_mm_meta': '{"classes": ['})
    with pytest.raises(CheckpointError, match='a.safetensors .* is corrupt'):
        read_checkpoint(tmp_path / 'a.safetensors')


def test_config_of_another_model_is_refused(micro, tmp_path):
    config = write_config('classification', tmp_path, tmp_path)
    with pytest.raises(CheckpointError, match='epoch_3.pth does not fit the config'):
        publish(micro.checkpoint, tmp_path, '--config', str(config))


@pytest.mark.parametrize(
    'out, message',
    [
        ('nowhere/a.pth', 'nowhere is not a directory: create it first'),
        ('.', 'expected a file name'),
        ('a b.pth', 'expected a file name'),
        ('a.safetensors', '--safetensors adds'),
    ],
)
def test_invalid_output_names_are_refused(out, message, micro, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        main([micro.checkpoint, out])


def test_full_disk_leaves_no_files(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(WriteError, match='could not be written: No space left on device; .* are free there'):
        write_files(str(tmp_path), pack(strip_checkpoint(micro.checkpoint), 'micro'))
    assert not list(tmp_path.iterdir())
