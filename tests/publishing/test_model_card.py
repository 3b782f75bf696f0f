"""Model cards and metafile entries contain facts from the checkpoint, the config and the log."""

import hashlib

import pytest
import torch
import yaml
from published import STAMP, publish, write_checkpoint

from fcvit_mm.apis.load import build_model
from fcvit_mm.engine.config import load_config
from fcvit_mm.publishing import model_card
from fcvit_mm.publishing.model_card import describe, write_card
from fcvit_mm.publishing.weights import strip_checkpoint


def test_card_and_metafile_entry(micro, tmp_path, capsys):
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
    # The indentation of the metafiles in configs/.
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
    assert 'dropped: optimizer, param_schedulers, message_hub' in capsys.readouterr().out


@pytest.mark.parametrize(
    'meta, shown',
    [
        (dict(epoch=2, iter=8), True),
        (dict(epoch=2, iter=12), False),
        (dict(epoch=2, iter=8, run=dict(loop='epochs', parts=[])), True),
        (dict(epoch=2, iter=10, run=dict(loop='epochs', parts=[[1, 4, 2]])), False),
        (dict(epoch=2, iter=8, run=None), True),
    ],
)
def test_weights_from_within_an_epoch_have_no_metrics(micro, tmp_path, meta, shown):
    content = torch.load(micro.checkpoint, weights_only=False)
    content['meta'].update(meta)
    torch.save(content, tmp_path / 'interrupted.pth')
    card = publish(tmp_path / 'interrupted.pth', tmp_path, '--work-dir', str(micro.folder))['.md'].read_text()
    assert ('11.50 %' in card) == shown and ('Not known: the run' in card) != shown


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_card_names_the_scope_of_another_library(tmp_path, task):
    source = write_checkpoint(tmp_path / 'a.pth', {'head.fc.weight': torch.ones(2)})
    model = describe(strip_checkpoint(str(source)), str(source))._replace(task=task, config='a.py')
    assert "Inferencer('a.py', 'a.pth')" in write_card(model, 'a', {'a.pth': b''})
    card = write_card(model._replace(scope='mmyolo'), 'a', {'a.pth': b''})
    assert {
        'detection': "DetInferencer('a.py', 'a.pth', scope='mmyolo')('image.jpg', out_dir='drawn')",
        'segmentation': '```bash\npython tools/visualize.py a.py a.pth image.jpg --out-dir drawn\n```',
    }[task] in card


@pytest.mark.parametrize(
    'root, metainfo, name',
    [
        ('data/imagenet', {}, 'ImageNet-1k'),
        ('data/coco/', dict(classes=['thing'] * 80), 'COCO'),
        ('data/shapes/imagenet', dict(classes=('circle', 'cross')), 'imagenet with 2 classes'),
        ('/home/me/coco/', dict(classes='names.txt'), 'coco with own classes'),
        ('data/flowers', dict(classes=('rose', 'tulip')), 'flowers'),
    ],
)
def test_standard_data_sets_are_named_only_with_their_own_classes(root, metainfo, name):
    dataset = dict(type='CustomDataset', data_root=root, metainfo=metainfo)
    assert model_card._name(dataset) == name
    assert model_card._as_text(dataset) == f'{name} (CustomDataset)'


@pytest.mark.parametrize(
    'dataset, trained, name',
    [
        (dict(data_root='data/imagenet'), ['class'] * 1000, 'ImageNet-1k'),
        (dict(data_root='data/imagenet'), ('circle', 'cross'), 'imagenet with 2 classes'),
        (dict(data_root='data/imagenet', metainfo=dict(classes=['class'] * 1000)), ('circle',), 'ImageNet-1k'),
        (dict(data_root='data/flowers'), ('rose', 'tulip'), 'flowers'),
    ],
)
def test_data_sets_without_metainfo_use_the_classes_of_the_checkpoint(dataset, trained, name):
    assert model_card._name(dataset, trained) == name
    assert model_card._as_text(dict(dataset, type='CustomDataset'), trained) == f'{name} (CustomDataset)'


@pytest.mark.parametrize(
    'paths, text',
    [
        (dict(data_prefix=dict(img_path='/home/me/ade/images', seg_map_path='/home/me/ade/maps')), 'images, maps'),
        (
            dict(ann_file='/home/me/lists/train.json', data_prefix=dict(img='/data/a/train/', seg='')),
            'train.json; train',
        ),
        (dict(ann_file='lists/train.txt', data_prefix='/home/me/ade/images'), 'lists/train.txt; images'),
        (dict(split='val'), 'val'),
    ],
)
def test_paths_of_this_machine_are_not_published(paths, text):
    dataset = dict(type='Set', data_root='/home/me/ade', **paths)
    assert model_card._as_text(dataset) == f'ade (Set; {text})'


def test_missing_facts_are_marked_as_not_known(micro, tmp_path, capsys):
    files = publish(micro.checkpoint, tmp_path, '--work-dir', str(tmp_path))
    assert set(files) == {'.pth', '.md'}
    card = files['.md'].read_text()
    for key in ('task', 'config', 'trained on', 'trained until', 'images per step', 'multiply-adds'):
        assert f'| {key} | not known |' in card
    assert '| network | FCViT with depths (1, 1, 1, 1)' in card and "Not known: the run's log" in card
    printed = capsys.readouterr().out
    assert 'No metric' in printed and 'both need --config' in printed


def test_text_of_a_checkpoint_is_escaped(tmp_path):
    source = write_checkpoint(tmp_path / 'a.pth', {'head.fc.weight': torch.ones(2)})
    content = torch.load(source, weights_only=False)
    content['meta']['dataset_meta'] = dict(classes=('<script>a</script>', 'b|c', 'd\n\n# e', '![f](http://g)'))
    torch.save(content, source)
    card = publish(source, tmp_path)['.md'].read_text()
    assert r'4: \<script\>a\</script\>, b\|c, d # e, !\[f\](http://g).' in card
