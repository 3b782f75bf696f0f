"""AttnScale and FeatScale: the formulas, the published numbers on three hosts, plain weights, positions, options."""

import logging

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.logging import MMLogger
from reference import NUM_CLASSES, fixture, image, published

import fcvit_mm
from fcvit_mm import dependencies
from fcvit_mm.checkpoints import CheckpointError, convert_checkpoint, load_pretrained, read_checkpoint
from fcvit_mm.models.layers import count_parameters
from fcvit_mm.models.oversmoothing import METHODS, AttnScaleHeadMixing, FeatScale, attn_scale, resample_table

pytest.importorskip('timm')

CLASS_TOKEN = dict(patch_size=8, img_size=32, out_type='cls_token')
#: Class, arguments of the published small model, how many stages its outputs come from, input.
HOSTS = {
    'vit': (fcvit_mm.ViT, dict(CLASS_TOKEN, arch=dict(depths=(2,), channels=(24,), num_heads=(3,))), (2, 3, 32, 32), 7),
    'cait': (
        fcvit_mm.CaiT,
        dict(CLASS_TOKEN, arch=dict(depths=(2, 2), channels=(24, 24), num_heads=(3, 3))),
        (2, 3, 32, 32),
        7,
    ),
    # Published with two stages: the others are not built.
    'swin': (
        fcvit_mm.Swin,
        dict(out_indices=1, arch=dict(depths=(2, 2, 1, 1), channels=(12, 24, 24, 24), num_heads=(2, 4, 4, 4))),
        (1, 3, 112, 112),
        8,
    ),
}
DENSE = {
    'vit': dict(arch=dict(depths=(2,), channels=(24,), num_heads=(3,)), img_size=64),
    'cait': dict(arch=dict(depths=(2, 1), channels=(24, 24), num_heads=(3, 3)), img_size=64),
    'swin': dict(arch=dict(depths=(2, 2, 1, 1), channels=(12, 24, 24, 48), num_heads=(2, 4, 4, 4))),
}


@pytest.fixture(params=HOSTS)
def host(request) -> str:
    return request.param


def micro(host, methods=METHODS, **options):
    torch.manual_seed(0)
    return HOSTS[host][0](**{**DENSE[host], 'methods': methods, **options})


def classifier(host, methods=METHODS, **options):
    torch.manual_seed(0)
    network, arguments, *_ = HOSTS[host]
    return network(**{**arguments, 'methods': methods, **options})


def stir(model):
    """Values other than those that a network starts with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def names_of(host):
    return HOSTS[host][0].published_names


def lambs(model):
    return {name for name, _ in model.named_parameters() if 'lamb' in name}


def matrix_of(q, k, lamb, add=0.0):
    """The attention matrix of AttnScale as the paper defines it: what differs from the mean, scaled."""
    attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + add).softmax(-1)
    share = 1 / k.shape[-2]
    return share + (attention - share) * (1 + lamb[:, None, None])


def test_attn_scale_is_the_definition_on_the_matrix():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.double, requires_grad=True) for _ in range(3))
    lamb = torch.randn(3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 3, 7, 4, dtype=torch.double)
    expected = matrix_of(q, k, lamb) @ v
    actual = attn_scale(F.scaled_dot_product_attention(q, k, v), v, lamb)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad((actual * weight).sum(), (q, k, v, lamb)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v, lamb)),
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_a_small_lamb(dtype):
    attended, values = torch.randn(2, 1, 2, 5, 4).to(dtype)
    lamb = torch.full((2,), 1e-3)
    difference = attn_scale(attended, values, lamb) - attended
    assert difference.dtype == dtype and difference.any()


def test_head_mixing_is_the_definition_on_the_matrix():
    torch.manual_seed(0)
    mixing = stir(AttnScaleHeadMixing(3)).double()
    attention = torch.randn(2, 5, 5, 3, dtype=torch.double).softmax(2)
    mixed = F.linear(attention, mixing.weight, mixing.bias)
    torch.testing.assert_close(mixing(attention), 1 / 5 + (mixed - 1 / 5) * (1 + mixing.lamb))
    assert AttnScaleHeadMixing(3).lamb.eq(0).all()


@pytest.mark.parametrize('shape', [(2, 6, 4), (2, 2, 3, 4)], ids=str)
@pytest.mark.parametrize('factor', [1, 2])
def test_feat_scale_is_the_definition(shape, factor):
    y = torch.randn(shape, dtype=torch.double)
    layer = FeatScale(4, factor).double()
    torch.testing.assert_close(layer(y), y)
    stir(layer)
    for given, out in zip(y.flatten(1, -2), layer(y).flatten(1, -2)):
        dc = given.mean(0)
        for token, found in zip(given, out):
            torch.testing.assert_close(found, token + factor * (layer.lamb1 * dc + layer.lamb2 * (token - dc)))


@pytest.mark.parametrize('masked', [False, True])
def test_window_attention_is_the_definition_on_the_matrix(masked):
    from fcvit_mm.models.timm_blocks import AttnScaleWindowAttention, shift_mask

    torch.manual_seed(0)
    layer = stir(AttnScaleWindowAttention(8, 2, 3, ('attn_scale',))).double()
    x = torch.randn(8, 9, 8, dtype=torch.double)
    mask = shift_mask((6, 6), (3, 3), (1, 1), x) if masked else None
    q, k, v = layer.qkv(x).view(8, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    bias = layer._get_rel_pos_bias()
    if masked:
        bias = bias + mask.repeat(2, 1, 1)[:, None]
    expected = layer.proj((matrix_of(q, k, layer.lamb, bias) @ v).transpose(1, 2).reshape(8, 9, 8))
    torch.testing.assert_close(layer(x, mask), expected)


def test_shift_mask_parts_what_came_around():
    from fcvit_mm.models.timm_blocks import shift_mask

    size, window, shift = (6, 9), (3, 3), (1, 0)
    mask = shift_mask(size, window, shift, torch.zeros(1))
    rows = torch.arange(6).roll(-1)[:, None].expand(6, 9)  # where each row of the rolled map was
    windows = rows.reshape(2, 3, 3, 3).transpose(1, 2).reshape(6, 9)
    far = (windows[:, :, None] - windows[:, None]).abs() > 2
    assert torch.equal(mask, torch.zeros(6, 9, 9).masked_fill(far, -100.0))


@torch.no_grad()
@pytest.mark.parametrize('method', ['attnscale', 'featscale'])
def test_logits_are_the_published_ones(host, method):
    expected = fixture(host, method)
    weights = {
        key: value
        for key, value in published(host, network=method).items()
        if not key.endswith(('attn_mask', 'relative_position_index'))
    }
    model = classifier(host, (f'{method[:4]}_scale',)).eval()
    names = {key: names_of(host).to_ours(key) for key in weights if not key.startswith('head.')}
    if host == 'swin':  # its last stage is the second here
        names = {key: name.replace('norm3', 'norm1') for key, name in names.items()}
    model.load_state_dict({names[key]: weights[key] for key in names})
    features = model(image(*HOSTS[host][2:]))[0]
    features = features.mean((2, 3)) if features.ndim == 4 else features
    logits = F.linear(features, weights['head.weight'], weights['head.bias'])
    assert logits.shape[1] == NUM_CLASSES
    np.testing.assert_allclose(logits, expected['logits'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('method, expected', [('attn_scale', 22_050_736), ('feat_scale', 22_059_880)])
def test_parameters_are_the_published_ones(method, expected):
    with torch.device('meta'):
        backbone = fcvit_mm.ViT('small_12', (method,), out_type='cls_token')
        assert count_parameters(backbone) + count_parameters(nn.Linear(384, 1000)) == expected


@torch.no_grad()
@pytest.mark.parametrize('methods', [METHODS[:1], METHODS[1:], METHODS[::-1]], ids=str)
def test_starts_as_the_plain_network(host, methods):
    """Each method does nothing at zero, and something elsewhere."""
    options = dict(layer_scale_init_value=1.0) if host == 'cait' else {}
    plain, model = stir(micro(host, (), **options)).eval(), micro(host, methods, **options).eval()
    assert not lambs(plain)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == lambs(model) and not unexpected
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(model(x), plain(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for method, word in zip(METHODS, ('.attn.', '.feat_scale.')):
        if method in methods:
            changed = micro(host, methods, **options).eval()
            changed.load_state_dict(model.state_dict())
            for name in lambs(model):
                if word in name:
                    changed.get_parameter(name).fill_(0.5)
            assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(changed(x), plain(x)))


@torch.no_grad()
def test_the_plain_network_is_timms():
    """The host with its own attention and its own names gives the same."""
    import timm

    model = classifier('vit', ()).eval()
    theirs = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0
    ).eval()
    theirs.load_state_dict(names_of('vit').to_published(model.state_dict()))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_plain_swin_is_timms():
    """Its last map is one window, which is not shifted."""
    import timm

    arch = dict(depths=(2, 2, 2, 2), channels=(8, 16, 32, 64), num_heads=(2, 2, 4, 4))
    model = stir(fcvit_mm.Swin(arch, (), out_indices=3)).eval()
    theirs = timm.create_model(
        'swin_tiny_patch4_window7_224', embed_dim=8, depths=arch['depths'], num_classes=0, num_heads=arch['num_heads']
    ).eval()
    own = {
        name.replace('stages.', 'layers.').replace('stem.', 'patch_embed.').replace('norm3.', 'norm.'): value
        for name, value in model.state_dict().items()
    }
    theirs.load_state_dict(own)
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(x)[0].mean((2, 3)), theirs(x), rtol=1e-4, atol=1e-5)


def log_of(caplog, work):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.clear()
    try:
        work()
    finally:
        logger.removeHandler(caplog.handler)
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def save_plain(host, path, **options):
    """A plain network's file, as DeiT, CaiT and Swin release them."""
    model = stir(classifier(host, (), **options))
    weights = names_of(host).to_published(model.state_dict())
    width = model.out_channels[0]
    weights.update({'head.weight': torch.ones(5, width), 'head.bias': torch.zeros(5)})
    if host == 'swin':
        weights['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(49, 49, dtype=torch.long)
        weights['layers.0.blocks.1.attn_mask'] = torch.zeros(16, 49, 49)
    torch.save({'model': weights}, path)
    return model


@pytest.mark.parametrize('dense', [False, True])
def test_plain_weights_are_a_start(host, dense, tmp_path, caplog):
    path = tmp_path / 'plain.pth'
    plain = save_plain(host, path)
    kind = dict(HOSTS[host][1])
    if dense and host != 'swin':
        kind.pop('out_type')
    torch.manual_seed(3)
    model = HOSTS[host][0](methods=METHODS, init_cfg=dict(type='Pretrained', checkpoint=str(path)), **kind)
    messages = log_of(caplog, model.init_weights)
    report = next(text for _, text in messages if 'start at zero' in text)
    assert report.startswith(f'{len(lambs(model))} keys missing in the file')
    assert any(name in report for name in lambs(model))
    assert not any('unexpected' in text for _, text in messages)
    others = [text for level, text in messages if level == logging.WARNING and text != report]
    assert len(others) == (dense and host != 'swin') and all('pyramid' in text for text in others)
    state_dict = model.state_dict()
    assert not any(state_dict[name].any() for name in lambs(model))
    shared = [name for name in plain.state_dict() if name in state_dict and not name.startswith('norm')]
    assert len(shared) > 20
    assert all(torch.equal(state_dict[name], plain.state_dict()[name]) for name in shared)


def test_plain_weights_convert(host, tmp_path):
    save_plain(host, tmp_path / 'plain.pth', **({} if host != 'swin' else dict(out_indices=3)))
    summary = convert_checkpoint(str(tmp_path / 'plain.pth'), str(tmp_path / 'ours.pth'))
    assert (summary['network'], summary['task']) == (HOSTS[host][0].__name__, 'classifier')
    weights = read_checkpoint(tmp_path / 'ours.pth')['state_dict']
    model = classifier(host, (), **({} if host != 'swin' else dict(out_indices=3)))
    model.load_state_dict(
        {key[len('backbone.') :]: value for key, value in weights.items() if key.startswith('backbone.')}
    )


@pytest.mark.parametrize('name', ['small_12', 'base_24'])
def test_a_file_of_another_width_or_depth_is_an_error(name, tmp_path):
    save_plain('vit', tmp_path / 'plain.pth')
    with torch.device('meta'):
        model = fcvit_mm.ViT(name)
    with pytest.raises(CheckpointError, match=f'is ViT with depths .* the backbone is ViT {name}'):
        load_pretrained(model, str(tmp_path / 'plain.pth'))


@pytest.mark.parametrize('host, extra', [('vit', 1), ('cait', 0)])
@pytest.mark.parametrize('way', ['Pretrained', 'load_state_dict'])
def test_position_embeddings_of_a_checkpoint_are_resized(host, extra, way, tmp_path):
    small = save_plain(host, tmp_path / 'plain.pth')
    large = classifier(host, (), img_size=(48, 64))
    if way == 'Pretrained':
        load_pretrained(large, str(tmp_path / 'plain.pth'))
    else:
        state_dict = small.state_dict()
        nn.ModuleDict({'backbone': large}).load_state_dict({f'backbone.{k}': v for k, v in state_dict.items()})
        assert state_dict['stem.pos_embed'].shape == small.stem.pos_embed.shape, 'the caller keeps his'
    given = small.stem.pos_embed.detach()
    grid = given[0, extra:].T.reshape(1, -1, 4, 4)
    expected = F.interpolate(grid, (6, 8), mode='bicubic', align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(large.stem.pos_embed[0, extra:], expected)
    torch.testing.assert_close(large.stem.pos_embed[0, :extra], given[0, :extra])


def test_bias_tables_of_a_checkpoint_are_resized():
    small, large = stir(micro('swin', window_size=5)), micro('swin', window_size=7)
    large.load_state_dict(small.state_dict())
    table = small.stages[0].blocks[1].attn.relative_position_bias_table
    found = large.stages[0].blocks[1].attn.relative_position_bias_table
    expected = F.interpolate(table.T.reshape(1, 2, 9, 9), (13, 13), mode='bicubic', align_corners=False)
    torch.testing.assert_close(found, expected.flatten(2)[0].T)


def test_positions_of_no_square_cannot_be_resized():
    with pytest.raises(ValueError) as caught:
        classifier('vit').load_state_dict(classifier('vit', img_size=(24, 48)).state_dict())
    for word in ('stem.pos_embed', '18 positions', 'expected 16', '4x4'):
        assert word in str(caught.value)


def test_resampling_leaves_what_fits_alone():
    table = torch.randn(1, 17, 3)
    assert resample_table(table, (4, 4), (4, 4)) is table
    constant = torch.ones(1, 17, 3).index_fill(1, torch.tensor([0]), 5)
    resized = resample_table(constant, (4, 4), (3, 7))
    assert resized.shape == (1, 22, 3) and resized[0, 0].eq(5).all()
    torch.testing.assert_close(resized[:, 1:], torch.ones(1, 21, 3))


@torch.no_grad()
def test_padding_of_one_window_does_not_reach_the_next():
    """Swin on a map that is no multiple of the window: what comes around in the roll is masked."""
    model = stir(micro('swin', (), out_indices=0)).eval()
    x = torch.randn(1, 3, 72, 40)  # a map of 18x10, padded to 21x14
    changed = x.clone()
    changed[..., :4, :] += 1  # the first row of patches, which the roll brings next to the last
    a, b = model(x)[0], model(changed)[0]
    assert not torch.allclose(a[..., :4, :], b[..., :4, :], atol=1e-3)
    torch.testing.assert_close(a[..., 14:, :], b[..., 14:, :], rtol=1e-4, atol=1e-5)


def test_frozen_blocks():
    model = micro('vit', frozen_stages=1).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(('stem.', 'stages.0.blocks.0.'))}
    assert not model.stem.training and not model.stages[0].blocks[0].training and model.stages[0].blocks[1].training
    sum(x.sum() for x in model(torch.randn(1, 3, 64, 64))).backward()


@pytest.mark.parametrize('host', ['vit', 'cait'])
def test_class_token_trains_everything(host):
    model = stir(classifier(host, drop_path_rate=0.1, with_cp=True)).train()
    (token,) = model(torch.randn(2, 3, 30, 41))
    assert token.shape == (2, 24)
    token.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    depths = [model.get_layer_depth(name)[0] for name, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert model.get_layer_depth('stages.0.blocks.1.attn.qkv.weight')[0] == 2


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dependencies.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"timm is not installed.*'fcvit_mm\[timm\]'"):
        fcvit_mm.ViT('small_12')


@pytest.mark.parametrize(
    'host, options, error, words',
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
        ('vit', dict(img_size=100), ValueError, ['img_size=100', 'patch_size=16']),
        ('vit', dict(patch_size=6, img_size=48), ValueError, ['patch_size=6', 'multiples of 4']),
        ('cait', dict(frozen_stages=3), ValueError, ['frozen_stages=3', 'up to 2']),
        ('swin', dict(window_size=1), ValueError, ['window_size=1', 'at least 2']),
        ('swin', dict(drop_path_rate=1.0), ValueError, ['drop_path_rate=1.0', 'less than 1']),
    ],
)
def test_bad_options(host, options, error, words):
    with pytest.raises(error) as caught:
        micro(host, **options)
    for word in words:
        assert word in str(caught.value)
