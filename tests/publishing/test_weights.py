"""tools/publish_model.py: the published model predicts as before, and its card tells only what is known."""

import hashlib
import json
import os
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from harness import LIBRARIES, ROOT, write_config
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint

import fcvit_mm
from fcvit_mm.apis.count import build_model
from fcvit_mm.apis.draw import build_drawer
from fcvit_mm.checkpoints import CheckpointError, read_checkpoint
from fcvit_mm.engine.config import adapt_to_machine, load_config
from fcvit_mm.errors import UserError
from fcvit_mm.publishing.weights import pack, strip_checkpoint, write_files

main = runpy.run_path(str(ROOT / 'tools' / 'publish_model.py'))['main']
#: FCViT-tiny with one block in each stage: its heads and necks fit.
ARCH = dict(depths=(1, 1, 1, 1), channels=(32, 64, 160, 320), mlp_ratios=(1, 1, 1, 1))
MICRO = "\nmodel['backbone'] = dict(model.get('backbone', {{}}), arch=dict(_delete_=True, **{arch}))\n"
CLASSES = ('circle', 'cross', 'square', 'star', 'triangle')
STAMP = '20260102_030405'


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    DefaultScope._instance_dict.clear()
    MMLogger._instance_dict.clear()


def write_checkpoint(path, state_dict, classes=CLASSES, **dataset_meta):
    """What MMEngine's runner writes: much beside the weights."""
    meta = dict(
        epoch=3,
        iter=12,
        cfg='a = 1',
        seed=np.int64(7),
        experiment_name=f'micro_{STAMP}',
        time=STAMP,
        mmengine_version='0.10.12' + '0' * 40,
        hook_msgs=dict(secret='/home/somebody'),
        dataset_meta=dict(classes=classes, palette=[[255, 0, 0]] * len(classes), **dataset_meta),
    )
    moments = {i: dict(exp_avg=value.clone()) for i, value in enumerate(state_dict.values())}
    torch.save(
        dict(
            state_dict=state_dict,
            meta=meta,
            optimizer=dict(state=moments, param_groups=[]),
            param_schedulers=[dict(last_step=4)],
            message_hub=dict(runtime_info=dict(epoch=3)),
        ),
        path,
    )
    return path


def random_weights(model):
    torch.manual_seed(0)
    return {
        name: torch.rand_like(value) * 0.1 if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


@pytest.fixture(scope='module')
def micro(tmp_path_factory):
    """A run of a very small classifier: its folder with config, checkpoint and logs."""
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('micro') / 'configs'
    logs = folder / STAMP / 'vis_data'
    logs.mkdir(parents=True)
    config = write_config('classification', folder, '/data/of/somebody/flowers', MICRO.format(arch=ARCH))
    config = config.rename(folder / 'fcvit_micro_flowers.py')
    rows = [
        {'loss': 1.0, 'epoch': 2, 'iter': 8, 'step': 8},
        {'accuracy/top1': 11.5, 'step': 2, 'time': 1.0},
        {'loss': 1.0, 'epoch': 3, 'iter': 12, 'step': 12},
        {'accuracy/top1': 61.256, 'step': 3, 'time': 1.0},
    ]
    (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)) + '\n{"accuracy/to')
    (folder / STAMP / f'{STAMP}.log').write_text('Runtime environment:\n    GPU number: 2\n')
    model = build_model(load_config(str(config)))
    write_checkpoint(
        folder / 'epoch_3.pth',
        random_weights(model),
        sizes=np.array([[1.5]]),
        label_map={0: 1},
        file=Path('/home/somebody'),
    )
    return SimpleNamespace(folder=folder, config=str(config), checkpoint=str(folder / 'epoch_3.pth'))


def publish(checkpoint, folder, *options):
    """The files that the command writes, by suffix."""
    before = set(folder.iterdir())
    main([str(checkpoint), str(folder / 'micro.pth'), *options])
    return {path.suffix: path for path in set(folder.iterdir()) - before}


@pytest.mark.parametrize('task', LIBRARIES)
def test_predicts_the_same(task, tmp_path):
    pytest.importorskip(LIBRARIES[task])
    pytest.importorskip('safetensors')
    config = write_config(task, tmp_path, tmp_path, MICRO.format(arch=ARCH))

    def draw(checkpoint):
        cfg = load_config(str(config))
        adapt_to_machine(cfg)
        image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        return build_drawer(cfg, str(checkpoint), 'cpu', score_thr=0.0)(image)

    classes = (*CLASSES, *(['background'] if task == 'segmentation' else []))
    model = build_model(load_config(str(config)))
    source = write_checkpoint(tmp_path / 'epoch_3.pth', random_weights(model), classes)
    expected = draw(source)
    files = publish(source, tmp_path, '--safetensors')
    for suffix in ('.pth', '.safetensors'):
        np.testing.assert_array_equal(draw(files[suffix]), expected)
    # Strictly, too, and whoever lacks this package.
    content = torch.load(files['.pth'], weights_only=True)
    assert content['meta']['dataset_meta']['classes'] == classes
    load_checkpoint(model, str(files['.pth']), strict=True)
    original = torch.load(source, weights_only=False)['state_dict']
    assert all(torch.equal(original[name], value) for name, value in model.state_dict().items())


def test_only_weights_and_plain_data(micro, tmp_path):
    path = publish(micro.checkpoint, tmp_path)['.pth']
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] == re.fullmatch(r'micro-([0-9a-f]{8})\.pth', path.name)[1]
    assert path.stat().st_size < os.path.getsize(micro.checkpoint) / 1.8
    content = torch.load(path, weights_only=True)
    assert set(content) == {'state_dict', 'meta'}
    meta = content['meta']
    # The rest is not plain data, or not in JSON.
    assert meta['dataset_meta'] == dict(classes=CLASSES, palette=[[255, 0, 0]] * 5, sizes=[[1.5]])
    assert (meta['epoch'], meta['seed']) == (3, 7) and not {'cfg', 'hook_msgs'} & set(meta)
    assert b'somebody' not in path.read_bytes()
    # The same again has the same name, and is not written over what is there.
    with pytest.raises(CheckpointError, match=r'micro-[0-9a-f]{8}\.md and 1 more|is there already: .* --force'):
        publish(micro.checkpoint, tmp_path)
    assert publish(micro.checkpoint, tmp_path, '--force') == {}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_backbone_starts_from_it(micro, tmp_path, suffix):
    pytest.importorskip('safetensors')
    path = publish(micro.checkpoint, tmp_path, '--safetensors')[suffix]
    backbone = fcvit_mm.FCViT(ARCH, out_indices=(3,), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()
    weights = read_checkpoint(micro.checkpoint)['state_dict']
    assert all(torch.equal(weights[f'backbone.{name}'], value) for name, value in backbone.state_dict().items())


def test_averaged_weights_of_a_run_with_ema(micro, tmp_path):
    """MMEngine's own hook writes the checkpoint: under ``state_dict`` is the average, which validation used."""
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
    for options, expected, word in ((), 2.0, 'averaged'), (('--no-ema',), 3.0, 'as trained'):
        folder = tmp_path / word.split()[0]
        folder.mkdir()
        files = publish(source, folder, *options)
        content = torch.load(files['.pth'], weights_only=True)
        assert set(content) == {'state_dict', 'meta'} and set(content['state_dict']) == set(model.state_dict())
        assert content['state_dict'][name].unique().tolist() == [expected]
        assert word in files['.md'].read_text()
    with pytest.raises(CheckpointError, match='one set of weights, as a run without EMAHook writes it'):
        strip_checkpoint(micro.checkpoint, ema=False)
    torch.save(dict(checkpoint, ema_state_dict={'module.other': torch.ones(1)}), source)
    with pytest.raises(CheckpointError, match=r'does not belong to its state_dict \(other\)'):
        strip_checkpoint(str(source), ema=False)


def test_card_and_entry_say_what_is_known(micro, tmp_path, capsys):
    files = publish(micro.checkpoint, tmp_path, '--config', micro.config, '--shape', '64')
    model = build_model(load_config(micro.config))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    (entry,) = yaml.safe_load(files['.yml'].read_text())
    flops = entry['Metadata'].pop('FLOPs')
    assert entry == {
        'Name': 'fcvit_micro_flowers',
        'In Collection': 'FCViT',
        'Config': 'configs/fcvit_micro_flowers.py',
        'Metadata': {'Epochs': 3, 'Batch Size': 4 * 2, 'Parameters': parameters},
        'Results': [{'Task': 'Image Classification', 'Dataset': 'flowers', 'Metrics': {'Top 1 Accuracy': 61.26}}],
    }
    # As in the metafiles of configs/.
    assert files['.yml'].read_text().startswith('  - Name: fcvit_micro_flowers\n    In Collection')
    card = files['.md'].read_text()
    for text in (
        f'{parameters:,}',
        f'{flops / 1e9:.3f} G for an input of 3x64x64',
        '61.26 %',
        'epoch 3, iteration 12',
        'flowers (CustomDataset; train)',
        '| commit that trained it | not known |',
        '5: circle, cross',
        f'{STAMP}/vis_data/scalars.json',
        files['.pth'].name,
        '| licence of the weights | not known |',
        hashlib.sha256(files['.pth'].read_bytes()).hexdigest(),
        "ImageClassificationInferencer('configs/",
    ):
        assert text in card
    assert '/data/of' not in card and '11.5' not in card
    assert 'left out: optimizer, param_schedulers, message_hub' in capsys.readouterr().out


def test_what_is_not_known_is_not_invented(micro, tmp_path, capsys):
    files = publish(micro.checkpoint, tmp_path, '--work-dir', str(tmp_path))
    assert set(files) == {'.pth', '.md'}
    card = files['.md'].read_text()
    for key in ('task', 'config', 'trained on', 'trained until', 'images per step', 'multiply-adds'):
        assert f'| {key} | not known |' in card
    assert '| network | FCViT with depths (1, 1, 1, 1)' in card and "Not known: the run's log" in card
    printed = capsys.readouterr().out
    assert 'No metric' in printed and 'they need --config' in printed


def test_text_of_a_checkpoint_is_no_markup(tmp_path):
    source = write_checkpoint(tmp_path / 'a.pth', {'head.fc.weight': torch.ones(2)})
    content = torch.load(source, weights_only=False)
    content['meta']['dataset_meta'] = dict(classes=('<script>a</script>', 'b|c', 'd\n\n# e', '![f](http://g)'))
    torch.save(content, source)
    card = publish(source, tmp_path)['.md'].read_text()
    assert r'4: \<script\>a\</script\>, b\|c, d # e, !\[f\](http://g).' in card


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: torch.save(dict(state_dict=dict(a=Bomb(path.parent / 'boom'))), path), 'mkdir, .* Refused'),
        (lambda path: path.write_text('no checkpoint at all'), 'is text that begins with'),
        (
            lambda path: torch.save({'a': torch.ones(1)}, path),
            'has no state_dict among its keys a: .*convert_checkpoint',
        ),
        (lambda path: torch.save(dict(state_dict={}), path), 'has no tensors in its state_dict'),
        (lambda path: torch.save(dict(state_dict=dict(a=torch.tensor([1.0, float('nan')]))), path), 'NaN or infinite'),
    ],
)
def test_files_that_are_refused(make, message, tmp_path):
    (tmp_path / 'out').mkdir()
    make(tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        publish(tmp_path / 'a.pth', tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir()) and not (tmp_path / 'boom').exists()


def test_safetensors_with_broken_meta(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file({'a': torch.ones(1)}, tmp_path / 'a.safetensors', {'fcvit_mm_meta': '{"classes": ['})
    with pytest.raises(CheckpointError, match='a.safetensors .* is damaged'):
        read_checkpoint(tmp_path / 'a.safetensors')


def test_config_of_another_model(micro, tmp_path):
    config = write_config('classification', tmp_path, tmp_path)
    with pytest.raises(CheckpointError, match='epoch_3.pth does not fit the config'):
        publish(micro.checkpoint, tmp_path, '--config', str(config))


@pytest.mark.parametrize(
    'out, message',
    [
        ('nowhere/a.pth', 'nowhere is not a directory; make it first'),
        ('.', 'expected the name of a file'),
        ('a b.pth', 'expected the name of a file'),
        ('a.safetensors', '--safetensors adds'),
    ],
)
def test_destinations_that_are_none(out, message, micro, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        main([micro.checkpoint, out])


def test_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='are for --config, which is missing'):
        main(['a.pth', 'b.pth', '--shape', '64'])
    with pytest.raises(CheckpointError, match='a.pth does not exist'):
        main(['a.pth', 'b.pth'])


def test_a_full_disk_leaves_nothing_half(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(CheckpointError, match=r'cannot be written \(No space left on device\): make room'):
        write_files(str(tmp_path), pack(strip_checkpoint(micro.checkpoint), 'micro'))
    assert not list(tmp_path.iterdir())
