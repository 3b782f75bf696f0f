"""Common tests of ViT, CaiT and Swin: published values, weights of unmodified networks, positions, options."""

import logging

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.logging import MMLogger
from networks import METHODS, NETWORKS, build, perturb
from reference import (
    NUM_CLASSES,
    TRANSFORMER_INPUTS,
    fixture,
    image,
    published,
    transformer_arguments,
)

import fcvit_mm
from fcvit_mm import dependencies
from fcvit_mm.checkpoints import CheckpointError, convert_checkpoint, load_pretrained, read_checkpoint

pytest.importorskip('timm')


@pytest.fixture(params=TRANSFORMER_INPUTS)
def kind(request) -> str:
    return request.param


def micro(kind, methods=METHODS, **options):
    return build(NETWORKS[kind], methods=methods, **options)


def classifier(kind, methods=METHODS, **options):
    """The published small model's backbone."""
    torch.manual_seed(0)
    return NETWORKS[kind].type(**{**transformer_arguments(kind), 'methods': methods, **options})


def lambs(model):
    return {name for name, _ in model.named_parameters() if 'lamb' in name}


@torch.no_grad()
@pytest.mark.parametrize('method', ['attnscale', 'featscale'])
def test_logits_agree_with_published(kind, method):
    expected = fixture(kind, method)
    weights = {
        key: value
        for key, value in published(kind, network=method).items()
        if not key.endswith(('attn_mask', 'relative_position_index'))
    }
    model = classifier(kind, (f'{method[:4]}_scale',)).eval()
    names = {key: NETWORKS[kind].type.published_names.to_ours(key) for key in weights if not key.startswith('head.')}
    if kind == 'swin':  # its last stage is the second here
        names = {key: name.replace('norm3', 'norm1') for key, name in names.items()}
    model.load_state_dict({names[key]: weights[key] for key in names})
    features = model(image(*TRANSFORMER_INPUTS[kind]))[0]
    features = features.mean((2, 3)) if features.ndim == 4 else features
    logits = F.linear(features, weights['head.weight'], weights['head.bias'])
    assert logits.shape[1] == NUM_CLASSES
    np.testing.assert_allclose(logits, expected['logits'], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('methods', [METHODS[:1], METHODS[1:], METHODS[::-1]], ids=str)
def test_starts_as_the_unmodified_network(kind, methods):
    """Each method has no effect at zero, and an effect at other values."""
    options = dict(layer_scale_init_value=1.0) if kind == 'cait' else {}
    unmodified, model = perturb(micro(kind, (), **options)).eval(), micro(kind, methods, **options).eval()
    assert not lambs(unmodified)
    missing, unexpected = model.load_state_dict(unmodified.state_dict(), strict=False)
    assert set(missing) == lambs(model) and not unexpected
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(model(x), unmodified(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for method, word in zip(METHODS, ('.attn.', '.feat_scale.')):
        if method in methods:
            changed = micro(kind, methods, **options).eval()
            changed.load_state_dict(model.state_dict())
            for name in lambs(model):
                if word in name:
                    changed.get_parameter(name).fill_(0.5)
            assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(changed(x), unmodified(x)))


def log_of(caplog, work):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.clear()
    try:
        work()
    finally:
        logger.removeHandler(caplog.handler)
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def save_unmodified(kind, path, **options):
    """Save weights of an unmodified network in the format of the releases of DeiT, CaiT and Swin."""
    model = perturb(classifier(kind, (), **options))
    weights = NETWORKS[kind].type.published_names.to_published(model.state_dict())
    width = model.out_channels[0]
    weights.update({'head.weight': torch.ones(5, width), 'head.bias': torch.zeros(5)})
    if kind == 'swin':
        weights['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(49, 49, dtype=torch.long)
        weights['layers.0.blocks.1.attn_mask'] = torch.zeros(16, 49, 49)
    torch.save({'model': weights}, path)
    return model


@pytest.mark.parametrize('dense', [False, True])
def test_unmodified_weights_initialize_the_network(kind, dense, tmp_path, caplog):
    path = tmp_path / 'unmodified.pth'
    unmodified = save_unmodified(kind, path)
    arguments = transformer_arguments(kind)
    if dense and kind != 'swin':
        arguments.pop('out_type')
    torch.manual_seed(3)
    model = NETWORKS[kind].type(methods=METHODS, init_cfg=dict(type='Pretrained', checkpoint=str(path)), **arguments)
    messages = log_of(caplog, model.init_weights)
    report = next(text for _, text in messages if 'start at zero' in text)
    assert report.startswith(f'{len(lambs(model))} keys missing in the file')
    assert any(name in report for name in lambs(model))
    assert not any('unexpected' in text for _, text in messages)
    others = [text for level, text in messages if level == logging.WARNING and text != report]
    assert len(others) == (dense and kind != 'swin') and all('pyramid' in text for text in others)
    state_dict = model.state_dict()
    assert not any(state_dict[name].any() for name in lambs(model))
    shared = [name for name in unmodified.state_dict() if name in state_dict and not name.startswith('norm')]
    assert len(shared) > 20
    assert all(torch.equal(state_dict[name], unmodified.state_dict()[name]) for name in shared)


def test_unmodified_weights_convert(kind, tmp_path):
    save_unmodified(kind, tmp_path / 'unmodified.pth', **({} if kind != 'swin' else dict(out_indices=3)))
    summary = convert_checkpoint(str(tmp_path / 'unmodified.pth'), str(tmp_path / 'ours.pth'))
    assert (summary['network'], summary['task']) == (NETWORKS[kind].type.__name__, 'classifier')
    weights = read_checkpoint(tmp_path / 'ours.pth')['state_dict']
    model = classifier(kind, (), **({} if kind != 'swin' else dict(out_indices=3)))
    model.load_state_dict(
        {key[len('backbone.') :]: value for key, value in weights.items() if key.startswith('backbone.')}
    )


@pytest.mark.parametrize('name', ['small_12', 'base_24'])
def test_checkpoint_of_another_width_or_depth_is_refused(name, tmp_path):
    save_unmodified('vit', tmp_path / 'unmodified.pth')
    with torch.device('meta'):
        model = fcvit_mm.ViT(name)
    with pytest.raises(CheckpointError, match=f'is ViT with depths .* the backbone is ViT {name}'):
        load_pretrained(model, str(tmp_path / 'unmodified.pth'))


@pytest.mark.parametrize('kind, extra', [('vit', 1), ('cait', 0)])
@pytest.mark.parametrize('way', ['Pretrained', 'load_state_dict'])
def test_position_embeddings_of_a_checkpoint_are_resized(kind, extra, way, tmp_path):
    small = save_unmodified(kind, tmp_path / 'unmodified.pth')
    large = classifier(kind, (), img_size=(48, 64))
    if way == 'Pretrained':
        load_pretrained(large, str(tmp_path / 'unmodified.pth'))
    else:
        state_dict = small.state_dict()
        nn.ModuleDict({'backbone': large}).load_state_dict({f'backbone.{k}': v for k, v in state_dict.items()})
        assert state_dict['stem.pos_embed'].shape == small.stem.pos_embed.shape, 'the argument is not changed'
    given = small.stem.pos_embed.detach()
    grid = given[0, extra:].T.reshape(1, -1, 4, 4)
    expected = F.interpolate(grid, (6, 8), mode='bicubic', align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(large.stem.pos_embed[0, extra:], expected)
    torch.testing.assert_close(large.stem.pos_embed[0, :extra], given[0, :extra])


def test_non_square_position_embeddings_are_refused():
    with pytest.raises(ValueError) as caught:
        classifier('vit').load_state_dict(classifier('vit', img_size=(24, 48)).state_dict())
    for word in ('stem.pos_embed', '18 positions', 'expected 16', '4x4'):
        assert word in str(caught.value)


@pytest.mark.parametrize('kind', ['vit', 'cait'])
def test_class_token_output_trains_all_parameters(kind):
    model = perturb(classifier(kind, drop_path_rate=0.1, with_cp=True)).train()
    (token,) = model(torch.randn(2, 3, 30, 41))
    assert token.shape == (2, 24)
    token.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    depths = [model.get_layer_depth(name)[0] for name, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert model.get_layer_depth('stages.0.blocks.1.attn.qkv.weight')[0] == 2


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dependencies.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"timm is not installed.*'.\[timm\]'"):
        fcvit_mm.ViT('small_12')


@pytest.mark.parametrize(
    'kind, options, error, words',
    [
        ('vit', dict(methods='attn_scale'), TypeError, ["'attn_scale'", 'sequence', "('attn_scale',)"]),
        ('swin', dict(methods=('attnscale',)), ValueError, ["'attnscale'", "'attn_scale'", "'feat_scale'"]),
        ('cait', dict(methods=('attn_scale', 'attn_scale')), ValueError, ['once']),
        ('vit', dict(arch='small'), ValueError, ["unknown arch 'small'", 'small_12', 'base_24']),
        ('cait', dict(arch='xs24'), ValueError, ["unknown arch 'xs24'", 's24']),
        ('swin', dict(arch='tiny'), ValueError, ["unknown arch 'tiny'", 'small']),
        ('vit', dict(arch=dict(depths=(1,), channels=(24,), num_heads=(5,))), ValueError, ['(5,)', 'does not divide']),
        ('cait', dict(arch=dict(depths=(1, 1), channels=(24, 12), num_heads=(3, 3))), ValueError, ['(24, 12)', 'same']),
        ('vit', dict(out_type='featmap'), ValueError, ["'featmap'", 'pyramid', 'cls_token']),
        ('cait', dict(out_type='cls_token', out_indices=(3,)), ValueError, ['(3,)', 'no levels']),
        ('vit', dict(img_size=100), ValueError, ['img_size is 100', 'patch_size=16']),
        ('vit', dict(patch_size=6, img_size=48), ValueError, ['patch_size is 6', 'multiples of 4']),
        ('cait', dict(frozen_stages=4), ValueError, ['frozen_stages is 4', 'up to 3']),
        ('swin', dict(window_size=1), ValueError, ['window_size is 1', 'at least 2']),
        ('swin', dict(drop_path_rate=1.0), ValueError, ['drop_path_rate is 1.0', 'less than 1']),
    ],
)
def test_bad_options(kind, options, error, words):
    with pytest.raises(error) as caught:
        micro(kind, **options)
    for word in words:
        assert word in str(caught.value)
