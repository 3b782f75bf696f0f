"""``init_cfg=dict(type='Pretrained', checkpoint=...)`` with files of every origin."""

import argparse
import functools
import http.server
import logging
import os
import pickle
import threading
from importlib import import_module
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import torch.nn as nn
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from networks import NETWORKS, build
from reference import NUM_CLASSES, arguments, fixture, images, paddle, published

import fcvit_mm
from fcvit_mm.checkpoints import (
    CheckpointError,
    CheckpointNotFoundError,
    convert_checkpoint,
    fetch_checkpoint,
    load_pretrained,
    read_checkpoint,
)

NAMES = fcvit_mm.FCViT.published_names


@pytest.fixture
def log(caplog):
    """The messages of MMEngine's logger: ``log.text``, ``log.records``. (It does not propagate to the root logger.)"""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def init(path, out_indices=(0, 1, 2, 3), option='default', **options) -> fcvit_mm.FCViT:
    """A backbone initialized from a file."""
    torch.manual_seed(0)
    backbone = fcvit_mm.FCViT(
        out_indices=out_indices, **arguments(option), init_cfg=dict(type='Pretrained', checkpoint=str(path), **options)
    )
    backbone.init_weights()
    return backbone.eval()


def assert_features(backbone, prefix='x', stages=(0, 1, 2, 3)) -> None:
    expected = fixture('default')
    with torch.no_grad():
        outputs = backbone(images()[prefix])
    assert len(outputs) == len(stages)
    for i, output in zip(stages, outputs):
        torch.testing.assert_close(output, torch.from_numpy(expected[f'{prefix}_f{i}']), rtol=0, atol=1e-5)


def noise(state_dict) -> dict:
    return {key: torch.randn(value.shape) if value.is_floating_point() else value for key, value in state_dict.items()}


def prefixed(prefix, state_dict) -> dict:
    return {prefix + key: value for key, value in state_dict.items()}


HEADS = {
    'rpn_head.rpn_cls.weight': torch.ones(3, 4),
    'roi_head.bbox_head.fc_cls.weight': torch.ones(5, 4),
    'neck.lateral_convs.0.conv.weight': torch.ones(2),
}


def sources() -> dict:
    """One file of every kind that holds the dense fixture's weights."""
    dense = published(dense=True)
    namespace = argparse.Namespace(model='fcvit_b12', lr=1e-3)
    return {
        'bare': dense,
        'published': {'state_dict': dense, 'epoch': 299, 'arch': 'fcvit', 'args': namespace},
        'module': {'state_dict': prefixed('module.', dense)},
        'compiled': {'state_dict': prefixed('_orig_mod.', dense)},
        'model': {'model': dense},
        'EMA only': {'state_dict_ema': dense, 'args': namespace},
        'EMA module only': {'model_ema': prefixed('module.', dense)},
        'trained before EMA': {'state_dict': dense, 'state_dict_ema': noise(dense)},
        'detector': {'meta': {}, 'state_dict': {**prefixed('backbone.', dense), **HEADS}},
        'detector, distributed': {'state_dict': prefixed('module.', {**prefixed('backbone.', dense), **HEADS})},
        'segmentor': {'state_dict': {**prefixed('backbone.', dense), 'decode_head.conv_seg.weight': torch.ones(2)}},
        'half': {'state_dict': dense, 'optimizer': {'state': {}, 'param_groups': []}},
    }


@pytest.mark.parametrize('kind', sources())
def test_published_dense_file(kind, tmp_path, log):
    torch.save(sources()[kind], tmp_path / 'a.pth.tar')
    assert_features(init(tmp_path / 'a.pth.tar'))
    assert 'Loaded 216 tensors of FCViT' in log.text
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


def test_published_classifier(tmp_path, log):
    torch.save({'state_dict': published()}, tmp_path / 'a.pth')
    backbone = init(tmp_path / 'a.pth', out_indices=(3,))
    weight, bias = published()['head.weight'], published()['head.bias']
    with torch.no_grad():
        logits = nn.functional.linear(backbone(images()['x'])[0].mean((2, 3)), weight, bias)
    torch.testing.assert_close(logits, torch.from_numpy(fixture('default')['x_logits']), rtol=0, atol=1e-5)
    assert 'Not for the backbone, not loaded: 2 tensors (head.fc.weight, head.fc.bias)' in log.text
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


def test_classifier_into_a_dense_backbone(tmp_path, log):
    """The usual start of a detector: output norms that the file lacks keep their initial values."""
    torch.save({'state_dict': published()}, tmp_path / 'a.pth')
    backbone = init(tmp_path / 'a.pth')
    assert backbone.norm0.weight.eq(1).all()
    assert torch.equal(backbone.norm3.weight, published()['norm.weight'])
    assert torch.equal(backbone.stem.proj.weight, published()['patch_embed.proj.weight'])
    assert 'as usual for a classifier, initial values kept: norm0.weight, norm0.bias, norm1.weight and 3 m' in log.text
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


def test_backbone_of_fewer_stages(tmp_path, log):
    torch.save(published(dense=True), tmp_path / 'a.pth')
    assert_features(init(tmp_path / 'a.pth', out_indices=(0, 1)), stages=(0, 1))
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize('where', ['EMA', 'module'])
def test_averaged_weights_when_asked(where, tmp_path, log):
    dense = published(dense=True)
    averaged = {'state_dict_ema': dense} if where == 'EMA' else {'model_ema': prefixed('module.', dense)}
    torch.save({'state_dict': noise(dense), **averaged}, tmp_path / 'a.pth')
    assert_features(init(tmp_path / 'a.pth', ema=True))
    assert 'averaged (EMA) weights' in log.text
    log.clear()
    with pytest.raises(AssertionError):
        assert_features(init(tmp_path / 'a.pth'))
    assert 'trained weights, state_dict (averaged ones are there too' in log.text


def test_missing_averaged_weights_are_reported(tmp_path):
    torch.save({'state_dict': published(dense=True)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r"has no averaged \(EMA\) weights, expected one of \['state_dict_ema'"):
        init(tmp_path / 'a.pth', ema=True)


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('names', ['arrays', 'named arrays'])
def test_paddle(protocol, names, tmp_path, log):
    content = paddle(published())
    if names == 'named arrays':  # as newer Paddle saves tensors that are not in a state dict
        content = {key: value if '@@' in key else (key, value) for key, value in content.items()}
    with open(tmp_path / 'a.pdparams', 'wb') as file:
        pickle.dump(content, file, protocol=protocol)
    backbone = init(tmp_path / 'a.pdparams', out_indices=(3,))
    for key, value in published().items():
        if not key.startswith('head.'):
            assert torch.equal(backbone.state_dict()[NAMES.to_ours(key)], value), key
    assert 'Paddle classifier' in log.text


def test_transposed_weights_are_recognized_without_paddle_names(tmp_path):
    """A Paddle port with renamed statistics: the biases show how linear weights are stored."""
    state_dict = published(dense=True)
    turned = {key: value.t().contiguous() if value.ndim == 2 else value for key, value in state_dict.items()}
    torch.save(turned, tmp_path / 'a.pth')
    assert_features(init(tmp_path / 'a.pth'))


def test_mixed_layouts_of_linear_weights_are_refused(tmp_path):
    state_dict = published(dense=True)
    key = 'network.0.0.token_mixer.gc1.fc1.weight'
    torch.save({**state_dict, key: state_dict[key].t()}, tmp_path / 'a.pth')
    with pytest.raises(
        CheckpointError, match=r'weights stored \(out, in\).*others stored \(in, out\).*transpose one of the two'
    ):
        init(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'prefix, given', [('student.', 'student'), ('student.', 'student.'), ('backbone.', 'backbone.')]
)
def test_prefix(prefix, given, tmp_path):
    torch.save({**prefixed(prefix, published(dense=True)), 'teacher.weight': torch.ones(1)}, tmp_path / 'a.pth')
    assert_features(init(tmp_path / 'a.pth', prefix=given))


def test_missing_prefix_is_refused(tmp_path):
    torch.save(prefixed('backbone.', published(dense=True)), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r"begins with 'model.'; the names begin with \['backbone'\]"):
        init(tmp_path / 'a.pth', prefix='model')


class Toy(BaseModel):
    """A minimal model that MMEngine can train."""

    def __init__(self, backbone) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.ModuleDict({'fc': nn.Linear(self.backbone.out_channels[-1], 2)})

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.head['fc'](self.backbone(torch.stack(inputs))[-1].mean((2, 3)))
        return {'loss': logits.square().mean()} if mode == 'loss' else logits


class Images(torch.utils.data.Dataset):
    metainfo = {'classes': ('circle', 'square'), 'palette': [(1, 2, 3), (4, 5, 6)]}

    def __len__(self):
        return 4  # two iterations: averaging begins with a copy

    def __getitem__(self, index):
        return {'inputs': torch.rand(3, 32, 32)}


@pytest.mark.parametrize('hooks', [[], [{'type': 'EMAHook', 'momentum': 0.5}]], ids=['no EMA', 'EMA'])
def test_checkpoint_that_mmengine_wrote(hooks, tmp_path, log):
    """As CheckpointHook writes it: log buffers, optimizer, schedulers and all."""
    model = Toy({'type': 'FCViT', **arguments()})
    runner = Runner(
        model,
        str(tmp_path),
        experiment_name=tmp_path.name,
        train_dataloader={
            'dataset': Images(),
            'batch_size': 2,
            'sampler': {'type': 'DefaultSampler'},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 1e-2}},
        param_scheduler=[
            {'type': 'MultiStepLR', 'milestones': [1]},
            {'type': 'LinearLR', 'start_factor': 0.1, 'end': 2},
        ],
        custom_hooks=hooks,
    )
    runner.train()
    runner.logger.addHandler(log.handler)  # MMEngine's current logger from here on
    path = tmp_path / 'epoch_1.pth'
    backbone = init(path)
    written = torch.load(path, map_location='cpu', weights_only=False)
    assert {'optimizer', 'param_schedulers', 'message_hub'} <= set(written)
    assert ('ema_state_dict' in written) == bool(hooks)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, written['state_dict'][f'backbone.{key}'])
    assert 'OpenMMLab classifier' in log.text
    if hooks:  # under state_dict MMEngine keeps the averaged weights, whatever the key says
        assert 'averaged (EMA) weights' in log.text
        trained = dict(model.backbone.named_parameters())
        assert not torch.equal(backbone.stem.proj.weight, trained['stem.proj.weight'])
        init(path, ema=True)


MODELS_OF = {
    'mmpretrain': {
        'type': 'ImageClassifier',
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': NUM_CLASSES, 'in_channels': 40},
    },
    'mmdet': {
        'type': 'RPN',
        'train_cfg': None,
        'test_cfg': {'rpn': None},
        'rpn_head': {'type': 'RPNHead', 'in_channels': 8, 'feat_channels': 8},
        'neck': {'type': 'FPN', 'in_channels': [16, 24, 32, 40], 'out_channels': 8, 'num_outs': 5},
    },
    'mmseg': {
        'type': 'EncoderDecoder',
        'decode_head': {'type': 'FCNHead', 'in_channels': 40, 'in_index': 3, 'channels': 8, 'num_classes': 2},
    },
}


@pytest.mark.parametrize('scope', MODELS_OF)
def test_inside_a_model_of_each_library(scope, tmp_path, log):
    """The init_cfg of the backbone takes effect when the complete model initializes its weights."""
    pytest.importorskip(scope)
    path = tmp_path / 'a.pth.tar'
    torch.save({'state_dict': published()}, path)
    backbone = {'type': 'FCViT', **arguments(), 'init_cfg': {'type': 'Pretrained', 'checkpoint': str(path)}}
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build({**MODELS_OF[scope], 'backbone': backbone})
    model.init_weights()
    assert torch.equal(model.backbone.stem.proj.weight, published()['patch_embed.proj.weight'])
    assert torch.equal(model.backbone.norm3.bias, published()['norm.bias'])
    assert 'Loaded 210 tensors of FCViT' in log.text


def test_missing_and_unexpected_keys_are_reported(tmp_path, log):
    dense = published(dense=True)
    del dense['network.0.0.layer_scale_1'], dense['norm2.weight']
    dense.update({'network.0.0.surprise.weight': torch.ones(1), 'projector.weight': torch.ones(1)})
    torch.save(dense, tmp_path / 'a.pth')
    backbone = init(tmp_path / 'a.pth')
    assert backbone.stages[0].blocks[0].layer_scale1.eq(1e-6).all()
    warnings = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert warnings[0].startswith('1 keys missing in the file, initial values kept: stages.0.blocks.0.layer_scale1 ')
    assert warnings[1].startswith('2 keys unexpected in the file, not loaded: network.0.0.surprise.weight, projector')
    assert 'norm1.weight' in log.text


def test_parts_outside_the_backbone_are_not_unexpected(tmp_path, log):
    """In the checkpoint of any detector, only keys under backbone. can be unexpected."""
    state_dict = {**prefixed('backbone.', published(dense=True)), 'query_embedding.weight': torch.ones(1)}
    torch.save(state_dict, tmp_path / 'a.pth')
    init(tmp_path / 'a.pth')
    assert 'Not for the backbone, not loaded: 1 tensors (query_embedding.weight)' in log.text
    assert 'unexpected' not in log.text
    torch.save({**state_dict, 'backbone.surprise.weight': torch.ones(1)}, tmp_path / 'a.pth')
    init(tmp_path / 'a.pth')
    assert '1 keys unexpected in the file, not loaded: backbone.surprise.weight' in log.text


def test_missing_keys_of_another_option_are_reported(tmp_path, log):
    torch.save(published(dense=True), tmp_path / 'a.pth')
    init(tmp_path / 'a.pth', option='channel_att')
    assert '20 keys missing in the file' in log.text
    assert 'and 12 more' in log.text


@pytest.mark.parametrize(
    'content, message',
    [
        (
            {'conv1.weight': torch.ones(1), 'fc.weight': torch.ones(1)},
            r'nothing in common with FCViT.*conv1.weight, fc',
        ),
        ({'state_dict': {'backbone.layer1.0.conv1.weight': torch.ones(1)}}, 'has nothing in common with FCViT'),
        ({'patch_embed.proj.weight': torch.ones(1), 'network.0.0.mlp.fc1.weight': torch.ones(1)}, 'nothing in common'),
        (
            {'epoch': 3, 'args': argparse.Namespace()},
            'no tensors, only epoch, args, .*: give the file with the weights',
        ),
        ({'state_dict': {}}, 'contains no tensors, only nothing'),
        ({}, 'contains no tensors'),
        ({'state_dict': 'weights'}, 'contains no tensors, only state_dict'),
    ],
)
def test_unrelated_files_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        init(tmp_path / 'a.pth')


@pytest.mark.parametrize('there, here', [('b24', 'b12'), ('b12', 'b24'), ('tiny', 'b12')])
def test_another_variant_is_an_error(there, here, tmp_path):
    torch.save(NAMES.to_published(fcvit_mm.FCViT(there).state_dict()), tmp_path / 'a.pth')
    backbone = fcvit_mm.FCViT(here)
    before = backbone.stem.proj.weight.clone()
    with pytest.raises(CheckpointError, match=f'is FCViT {there}, the backbone is FCViT {here}.*Build the backbone'):
        load_pretrained(backbone, str(tmp_path / 'a.pth'))
    assert torch.equal(backbone.stem.proj.weight, before)


def test_other_shapes_are_an_error(tmp_path):
    torch.save(published('mix5x7', dense=True), tmp_path / 'a.pth')
    with pytest.raises(
        CheckpointError,
        match=r'shapes differ: stages.*dwconv.weight is \(16, 1, 5, 5\) in the file and '
        r'\(16, 1, 11, 11\) in the backbone',
    ):
        init(tmp_path / 'a.pth')


def test_position_embeddings_of_an_unknown_grid_are_an_error(tmp_path):
    backbone = build(NETWORKS['vit'])
    torch.save({**backbone.state_dict(), 'stem.pos_embed': torch.zeros(1, 51, 24)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='a.pth does not fit: stem.pos_embed .* has 50 positions, expected 196'):
        load_pretrained(backbone, str(tmp_path / 'a.pth'))


def test_stages_and_blocks_without_a_number_are_unexpected(tmp_path, log):
    backbone = build(NETWORKS['fcvit'])
    for name in ('stages.a.blocks.0.norm1.weight', 'stages.0.blocks.1a.norm1.weight'):
        torch.save({**backbone.state_dict(), name: torch.zeros(16)}, tmp_path / 'a.pth')
        load_pretrained(backbone, str(tmp_path / 'a.pth'))
        assert f'1 keys unexpected in the file, not loaded: {name}' in log.text
        with pytest.raises(CheckpointError, match=f'1 tensors that belong neither to .*: {name}'):
            convert_checkpoint(str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth'))


def test_two_keys_for_one_tensor_are_refused(tmp_path):
    dense = published(dense=True)
    dense['norm.weight'] = dense['norm6.weight']
    torch.save(dense, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='two tensors for norm3.weight'):
        init(tmp_path / 'a.pth')


def test_another_network_is_refused(tmp_path):
    torch.save(published(dense=True), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='is a FCViT, the backbone is a Linear'):
        load_pretrained(nn.Linear(1, 1), str(tmp_path / 'a.pth'))


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match='pretrained=None'):
        init(tmp_path / 'nowhere.pth')
    with pytest.raises(CheckpointError, match='checkpoint is None, expected a path'):
        load_pretrained(fcvit_mm.FCViT(**arguments()), None)


def test_frozen_backbone_loads(tmp_path):
    torch.save(published(dense=True), tmp_path / 'a.pth')
    backbone = fcvit_mm.FCViT(
        frozen_stages=4, **arguments(), init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'a.pth')}
    )
    backbone.init_weights()
    assert not backbone.stem.proj.weight.requires_grad
    assert_features(backbone.eval())


def test_loaded_parameters_keep_dtype_and_requires_grad(tmp_path):
    """Loading copies the values, so the parameters keep their dtype."""
    half = {key: value.half() if value.is_floating_point() else value for key, value in published(dense=True).items()}
    torch.save(half, tmp_path / 'a.pth')
    backbone = init(tmp_path / 'a.pth')
    assert backbone.stem.proj.weight.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in backbone.parameters())


# Addresses


@pytest.fixture
def server(tmp_path):
    """A local web server; its address and the list of requested paths."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    (tmp_path / 'served').mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / 'served'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{running.server_port}', asked
        running.shutdown()
        thread.join()


def downloaded_files(tmp_path):
    """Names of the downloaded files, without lock files."""
    return [name for name in os.listdir(tmp_path / 'home' / 'hub' / 'checkpoints') if not name.endswith('.lock')]


def test_download(server, tmp_path, monkeypatch):
    address, asked = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    torch.save({'state_dict': published(dense=True)}, tmp_path / 'served' / 'a.pth.tar')
    for _ in range(2):
        assert_features(init(f'{address}/a.pth.tar?download=1'))
    assert asked == ['/a.pth.tar?download=1']
    (name,) = downloaded_files(tmp_path)
    assert name.endswith('-a.pth.tar')


def test_checkpoints_are_read_from_urls(server, tmp_path, monkeypatch):
    """Also by processes that have not joined the others yet, as in preflight."""
    address, asked = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('LOCAL_RANK', '1')
    torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'served' / 'a.pth')
    for _ in range(2):
        assert read_checkpoint(f'{address}/a.pth')['state_dict']['a'] == 1
    path = fetch_checkpoint(f'{address}/a.pth')
    assert os.path.dirname(path) == str(tmp_path / 'home' / 'hub' / 'checkpoints') and asked == ['/a.pth']
    assert [fetch_checkpoint(name) for name in (path, 'published:a', 's3://a')] == [path, 'published:a', 's3://a']


def test_urls_of_one_file_name_have_files_of_their_own(server, tmp_path, monkeypatch, log):
    """The name epoch_12.pth says nothing about the content; a later command says how to get a changed file."""
    address, asked = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    urls = [f'{address}/{name}' for name in ('a/epoch_12.pth', 'b/epoch_12.pth', 'b/epoch_12.pth?version=2')]
    for value, folder in enumerate('ab'):
        (tmp_path / 'served' / folder).mkdir()
        torch.save({'value': torch.tensor(value)}, tmp_path / 'served' / folder / 'epoch_12.pth')
    for _ in range(2):
        assert [read_checkpoint(url)['value'].item() for url in urls] == [0, 1, 1]
    assert len(asked) == len(set(downloaded_files(tmp_path))) == 3
    path = fetch_checkpoint(urls[0])
    assert f'{urls[0]} was downloaded on ' in log.text and f'to {path}. If it has changed since, delete' in log.text


def test_downloads_of_the_libraries_with_a_hash_in_their_name_are_used(server, tmp_path, monkeypatch):
    address, asked = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    folder = tmp_path / 'home' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    for name in ('net_1x_20200205-d4b0c5d0.pth', 'net-20200205.pth'):  # the second has a date, not a hash
        (folder / name).touch()
        torch.save({'value': torch.tensor(1)}, tmp_path / 'served' / name)
    assert fetch_checkpoint(f'{address}/net_1x_20200205-d4b0c5d0.pth') == str(folder / 'net_1x_20200205-d4b0c5d0.pth')
    assert asked == []
    assert read_checkpoint(f'{address}/net-20200205.pth')['value'] == 1


@pytest.mark.parametrize(
    'name', ['with space.pth', 'mod\u00e8le.pth', 'with%20percent.pth', 'n' * 240 + '.safetensors']
)
def test_unusual_urls_are_downloaded(name, server, tmp_path, monkeypatch):
    address, _ = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    torch.save({'value': torch.tensor(1)}, tmp_path / 'served' / unquote(name))
    assert read_checkpoint(f'{address}/{name}')['value'] == 1
    (path,) = downloaded_files(tmp_path)
    assert path.endswith(name[-4:]) and path.isascii()


@pytest.mark.parametrize('host', ['[::1', 'h' * 300])
def test_impossible_hosts_are_reported(host, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    with pytest.raises(CheckpointError, match='is not a URL.*: give|could not be downloaded: no connection'):
        fetch_checkpoint(f'http://{host}/a.pth#part')


@pytest.mark.parametrize('content', [b'<!DOCTYPE html><title>Log in</title>', 'cut off'])
def test_invalid_download_is_removed(server, tmp_path, monkeypatch, content):
    address, _ = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    file = tmp_path / 'served' / 'a.pth'
    if content == 'cut off':
        torch.save({'state_dict': published(dense=True)}, file)
        content = file.read_bytes()[:-1000]
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'{address}/a.pth .*(is a web page|corrupt or truncated).*give the path'):
        init(f'{address}/a.pth')
    assert downloaded_files(tmp_path) == []


def test_downloaded_files_run_no_code(server, tmp_path, monkeypatch):
    address, _ = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)

    torch.save({'state_dict': Attack()}, tmp_path / 'served' / 'a.pth')
    with pytest.raises(CheckpointError, match='needs .*mkdir'):
        init(f'{address}/a.pth')
    assert not (tmp_path / 'ran').exists()


def test_failed_download_is_reported(server, tmp_path, monkeypatch):
    address, _ = server
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    with pytest.raises(CheckpointError, match='nowhere.pth could not be downloaded.*404.*give the path'):
        init(f'{address}/nowhere.pth')
    assert downloaded_files(tmp_path) == []
    with pytest.raises(CheckpointError, match='does not end in a file name'):
        init(f'{address}/')


@pytest.mark.parametrize('address', ['torchvision://resnet50', 'open-mmlab://resnet50', 'ftp://host/a.pth'])
def test_unsupported_addresses_are_refused(address):
    with pytest.raises(CheckpointError, match='expected a path, http:// or https://'):
        init(address)


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'add_safe_globals'), reason='torch before 2.4 has no list of its own'
)
def test_torch_reads_numbers_of_numpy_safely(tmp_path):
    numbers = [np.dtype(kind).type(1) for kind in ('float32', 'float16', 'int32', 'uint8', 'bool', 'float64')]
    torch.save(numbers, tmp_path / 'a.pth')
    get_torch_safe_globals = pytest.importorskip('mmengine.runner.checkpoint').get_torch_safe_globals
    for _ in range(2):  # torch forgets, at the end, what the context allows, and what was allowed before as well
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            assert torch.load(tmp_path / 'a.pth', weights_only=True) == numbers


@pytest.mark.skipif(not hasattr(torch.serialization, 'get_safe_globals'), reason='older torch')
def test_state_of_one_cycle_schedules_is_read_without_running_code(tmp_path):
    """Otherwise MMEngine logs a warning, and loads the file in a way that could run code."""
    torch.save({'param_schedulers': OneCycleParamScheduler}, tmp_path / 'a.pth')
    assert torch.load(tmp_path / 'a.pth', weights_only=True)['param_schedulers'] is OneCycleParamScheduler


@pytest.mark.skipif(not hasattr(torch, 'float8_e4m3fn'), reason='torch without floats of 8 bits')
def test_float8_weights(tmp_path):
    from fcvit_mm import FCViT

    arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), mlp_ratios=(1, 1, 1, 1))
    saved = {key: value.to(torch.float8_e4m3fn) for key, value in FCViT(arch, out_indices=(3,)).state_dict().items()}
    try:
        torch.save(saved, tmp_path / 'a.pth')
    except KeyError:  # torch 2.1
        pytest.skip('this torch cannot save floats of 8 bits')
    backbone = FCViT(arch, out_indices=(3,))
    load_pretrained(backbone, str(tmp_path / 'a.pth'))
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, saved[key].float()), key
    saved[next(iter(saved))].fill_(float('nan'))
    torch.save(saved, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='contains NaN or infinite values in 1 of'):
        load_pretrained(backbone, str(tmp_path / 'a.pth'))


def test_file_that_contains_itself(tmp_path):
    content = {}
    content['state_dict'] = content['other'] = content
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='or an object that contains itself: rejected'):
        init(tmp_path / 'a.pth')
