"""``published:NAME``: finding, downloading, checking and loading the files."""

import hashlib
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import load_checkpoint
from plain_net import temporary_variants
from reference import arguments, published
from weights_server import running, temporary_published

import fcvit_mm
from fcvit_mm.checkpoints import (
    CheckpointError,
    DownloadError,
    PublishedWeights,
    check_fits,
    convert_checkpoint,
    fetch_published,
    published_path,
    read_checkpoint,
    read_published,
    register_published,
)
from fcvit_mm.checkpoints import published_files as module
from fcvit_mm.files import WriteError
from fcvit_mm.models.variants import Variant, register_variant

KEY = 'network.0.0.layer_scale_1'


def content(tmp_path, state_dict, **more):
    torch.save({'state_dict': state_dict, **more}, tmp_path / 'content')
    return (tmp_path / 'content').read_bytes()


def prefixed(state_dict):
    return {f'backbone.{key}': value for key, value in state_dict.items()}


def detector():
    return {**prefixed(published(dense=True)), 'roi_head.bbox_head.fc_cls.weight': torch.ones(5, 4)}


@pytest.fixture
def micro(tmp_path, monkeypatch):
    """Small published weights: a classifier and a detector on a server, another to be downloaded by hand."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('FCVIT_MM_WEIGHTS', raising=False)
    monkeypatch.setattr('fcvit_mm.checkpoints.download.PAUSES', ())
    cache = tmp_path / 'home' / 'hub' / 'checkpoints'
    with running() as server, temporary_variants(), temporary_published():
        variant = Variant('micro', fcvit_mm.FCViT, dict(arguments(), out_indices=(3,)), 0.9, 'arXiv:0', 'Others')
        register_variant(variant)
        row = PublishedWeights('micro', 'micro', 'classifier', 'micro_in1k.py', 'https://a.b/page', KEY)
        row = row._replace(address=f'{server.address}/micro_224.pth')
        register_published(row)
        register_published(
            row._replace(
                name='micro_det',
                task='detector',
                config='micro_coco.py',
                address=f'{server.address}/det.pth',
                keys=f'backbone.{KEY}',
            )
        )
        register_published(row._replace(name='micro_drive', address=None))
        server.files = {
            '/micro_224.pth': content(tmp_path, published(), epoch=299),
            '/det.pth': content(tmp_path, detector(), meta=dict(CLASSES=('cat', 'dog'), config='x = 1')),
        }
        yield SimpleNamespace(server=server, row=row, variant=variant, cache=cache)


def backbone(**init_cfg):
    torch.manual_seed(0)
    return fcvit_mm.FCViT(**arguments(), out_indices=(3,), init_cfg=dict(type='Pretrained', **init_cfg))


def test_downloaded_once_and_read_with_our_names(micro):
    for _ in range(2):
        found = read_checkpoint('published:micro')
    assert [path for path, _ in micro.server.asked] == ['/micro_224.pth']
    assert os.listdir(micro.cache) == ['micro_224.pth'] or sorted(os.listdir(micro.cache))[-1] == 'micro_224.pth'
    model = torch.nn.ModuleDict({'backbone': micro.variant.build()})
    weights = {name: value for name, value in found['state_dict'].items() if name.startswith('backbone.')}
    model.load_state_dict(weights)
    expected = published()
    assert torch.equal(found['state_dict']['head.fc.weight'], expected['head.weight'])
    assert torch.equal(model['backbone'].stem.proj.weight, expected['patch_embed.proj.weight'])
    assert found['meta']['task'] == 'classifier' and found['meta']['source_file'] == 'micro_224.pth'


def test_initializes_a_backbone(micro):
    network = backbone(checkpoint='published:micro')
    network.init_weights()
    assert torch.equal(network.stem.proj.weight, published()['patch_embed.proj.weight'])


def test_mmengine_loads_published_weights(micro):
    """As load_from, the libraries' inferencers and init_model do."""
    model = torch.nn.ModuleDict({'backbone': micro.variant.build(), 'head': torch.nn.ModuleDict()})
    model['head']['fc'] = torch.nn.Linear(40, 10)
    found = load_checkpoint(model, 'published:micro', map_location='cpu', strict=True)
    assert torch.equal(model['head']['fc'].bias, published()['head.bias']) and found['meta']['epoch'] == '299'
    check_fits(model, 'published:micro')
    check_fits(model, 'published:micro_in1k')


def test_complete_detector_of_an_old_library(micro):
    found = read_published('micro_det')
    assert torch.equal(found['state_dict']['backbone.norm0.weight'], published(dense=True)['norm0.weight'])
    assert 'roi_head.bbox_head.fc_cls.weight' in found['state_dict']
    assert found['meta']['dataset_meta'] == {'classes': ('cat', 'dog')} and 'config' not in found['meta']


def test_folder_of_the_environment_variable_is_searched_first(micro, tmp_path, monkeypatch):
    folder = tmp_path / 'weights'
    assert fetch_published('micro', str(folder)).how == 'downloaded' and not micro.cache.exists()
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', str(folder))
    micro.server.files = {}  # a node without internet
    assert published_path('published:micro') == str(folder / 'micro_224.pth')
    assert read_published('micro')['meta']['task'] == 'classifier'
    assert len(micro.server.asked) == 1
    with pytest.raises(
        DownloadError, match=r'404 .*tools/download.py micro_det --to DIR; on this machine: FCVIT_MM_WEIGHTS=DIR'
    ):
        published_path('micro_det')


def test_environment_variable_with_a_missing_folder(micro, tmp_path, monkeypatch):
    folder = tmp_path / 'weights'
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', str(folder))
    with pytest.raises(
        CheckpointError, match=f'FCVIT_MM_WEIGHTS={folder} is not a folder: .* NAME --to {folder}.* unset'
    ):
        read_checkpoint('published:micro')
    fetch_published('micro', str(folder))  # what the message says
    assert published_path('micro') == str(folder / 'micro_224.pth')
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', '~/weights')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert published_path('micro') == str(folder / 'micro_224.pth')


def test_weights_that_must_be_downloaded_by_hand(micro, tmp_path, monkeypatch):
    folder = tmp_path / 'weights'
    folder.mkdir()
    monkeypatch.setenv('FCVIT_MM_WEIGHTS', str(folder))
    with pytest.raises(DownloadError, match=rf'open https://a.b/page in a browser, .* {micro.cache}/micro_drive.pth'):
        read_checkpoint('published:micro_drive')
    with pytest.raises(DownloadError, match=rf'as {folder}/micro_drive.pth \(or as micro_drive.pth in the folder'):
        fetch_published('micro_drive', str(folder))
    (folder / 'micro_drive.pth').write_bytes(micro.server.files['/micro_224.pth'])
    assert read_checkpoint('published:micro_drive')['meta']['network'] == 'FCViT'
    assert fetch_published('micro_drive').how == 'found' and not micro.server.asked


def other_arch():
    return fcvit_mm.FCViT.published_names.to_published(fcvit_mm.FCViT(**arguments('mix5x7')).state_dict())


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: b'<!DOCTYPE html><html>', 'what came is a web page, not a checkpoint'),
        (
            lambda path: content(path, detector()),
            r'is a detector with FCViT .*, expected micro: a classifier with FCViT',
        ),
        (
            lambda path: content(path, {**published('mix5x7')}),
            r'of its parameters differ \(stages.*dwconv.weight.*\)\. The file under this name is .*: delete it',
        ),
        (
            lambda path: content(path, {key: value for key, value in published().items() if key != KEY}),
            r'; 1 of its parameters differ \(stages.0.blocks.0.layer_scale1\)',
        ),
        (
            lambda path: content(path, published(network='dwnet', option='static')),
            f'is a classifier with DWNet .*keys such as {KEY}',
        ),
        (lambda path: content(path, published())[:-100], r'what came \(\d+ bytes\) is corrupt or truncated'),
    ],
    ids=['page', 'task', 'shapes', 'missing', 'other network', 'truncated'],
)
def test_wrong_content_is_refused_and_removed(make, message, micro, tmp_path):
    micro.server.files['/micro_224.pth'] = make(tmp_path)
    with pytest.raises(CheckpointError, match=f'micro_224.pth is not the file of micro: .*{message}'):
        published_path('micro')
    assert not [name for name in os.listdir(micro.cache) if not name.endswith('.lock')]


def test_wrong_file_saved_by_hand_is_refused(micro, tmp_path):
    micro.cache.mkdir(parents=True)
    (micro.cache / 'micro_drive.pth').write_bytes(content(tmp_path, detector()))
    for read in (read_published, fetch_published):
        with pytest.raises(CheckpointError, match='micro_drive.pth is a detector with .*delete it'):
            read('micro_drive')


def test_network_is_unavailable(micro):
    address = micro.server.address
    register_published(micro.row._replace(name='lost', address='http://127.0.0.1:9/lost.pth', confirmed=False))
    with pytest.raises(DownloadError) as error:
        read_checkpoint('published:lost')
    message = str(error.value)
    assert 'http://127.0.0.1:9/lost.pth could not be downloaded: no connection (' in message and address not in message
    assert (
        '(its name follows from the network, the publication does not give it). On a machine with internet: ' in message
    )
    assert (
        f'By hand: open https://a.b/page in a browser, download the checkpoint and save it as {micro.cache}' in message
    )


def test_folder_that_cannot_be_written(micro, tmp_path):
    (tmp_path / 'home').write_text('a file')
    with pytest.raises(WriteError, match='home/below could not be written: '):
        fetch_published('micro', str(tmp_path / 'home' / 'below'))
    with pytest.raises(WriteError, match=r'could not be written: .*python tools/download.py micro --to DIR, then FCVI'):
        read_checkpoint('published:micro')
    assert not micro.server.asked


def test_hash_is_returned_and_stored(micro, tmp_path, monkeypatch):
    expected = hashlib.sha256(micro.server.files['/micro_224.pth']).hexdigest()
    found = fetch_published('micro')
    assert found[1:] == (len(micro.server.files['/micro_224.pth']), expected, 'downloaded', True)
    beside = micro.cache / 'micro_224.pth.sha256'
    assert beside.read_text() == f'{expected}  micro_224.pth\n'  # what sha256sum -c reads
    assert fetch_published('micro') == found._replace(how='found')
    torch.save({'state_dict': published(), 'epoch': 1}, micro.cache / 'micro_224.pth')
    with pytest.raises(CheckpointError, match=rf'expected {expected} .*sha256.: the file has changed.*delete both'):
        fetch_published('micro')
    beside.unlink()

    def refuse(*args):
        raise WriteError('read-only')

    monkeypatch.setattr(module, 'write_atomic', refuse)
    assert fetch_published('micro').remembered is False


def test_local_file_is_copied_instead_of_downloaded(micro, tmp_path):
    published_path('micro')
    found = fetch_published('micro', str(tmp_path / 'weights'))
    assert found.how == f'copied from {micro.cache}/micro_224.pth' and len(micro.server.asked) == 1
    assert (tmp_path / 'weights' / 'micro_224.pth').read_bytes() == micro.server.files['/micro_224.pth']
    assert fetch_published('micro', str(tmp_path / 'weights')).how == 'found'


def test_unknown_parts_are_reported(micro, tmp_path, caplog):
    from mmengine.logging import MMLogger

    micro.server.files['/det.pth'] = content(tmp_path, {**detector(), 'surprise.weight': torch.ones(1)})
    MMLogger.get_current_instance().addHandler(caplog.handler)
    found = read_published('micro_det')
    assert 'surprise.weight' not in found['state_dict']
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert 'det.pth: 1 tensors of unknown components are not loaded: surprise.weight' in record.getMessage()


def test_published_weights_can_be_converted(micro, tmp_path):
    convert_checkpoint('published:micro', str(tmp_path / 'out.pth'))
    assert torch.load(tmp_path / 'out.pth', weights_only=True)['meta']['task'] == 'classifier'


def test_unknown_name_is_refused(micro):
    for read in (read_checkpoint, published_path, lambda name: backbone(checkpoint=name).init_weights()):
        with pytest.raises(
            CheckpointError, match="'micra' is not the name of published weights, expected one such as micro"
        ):
            read('published:micra')
