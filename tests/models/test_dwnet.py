"""DWNet only: values of the published implementation, kinds of kernels, padding, options."""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from reference import DWNETS, NUM_CLASSES, dwnet_arguments, fixture, image, published

import fcvit_mm
from fcvit_mm.checkpoints import CheckpointError, load_pretrained
from fcvit_mm.models.dwnet import DWMixer, DynamicDepthwiseConv, InhomogeneousDepthwiseConv, PatchMerging
from fcvit_mm.models.layers import count_parameters
from fcvit_mm.ops import use_ops

NAMES = fcvit_mm.DWNet.published_names
CLASSIFIER = dict(out_indices=(3,), norm_cfg=dict(type='LN'))
MICRO = dict(depths=(1, 1, 2, 1), channels=(8, 16, 24, 32), group_channels=(2, 4, 6, 8))


def micro(**options) -> fcvit_mm.DWNet:
    torch.manual_seed(0)
    return fcvit_mm.DWNet(**{'arch': MICRO, **options})


def from_published(kind: str, dense: bool) -> fcvit_mm.DWNet:
    model = fcvit_mm.DWNet(**dwnet_arguments(kind), **({} if dense else CLASSIFIER)).eval()
    state_dict = {
        NAMES.to_ours(key): value
        for key, value in published(kind, dense, 'dwnet').items()
        if not key.startswith('head.')
    }
    model.load_state_dict(state_dict)
    return model


@pytest.mark.parametrize('ops', ['auto', 'reference'])
@pytest.mark.parametrize('kind', DWNETS)
@torch.no_grad()
def test_logits_agree_with_published(kind, ops):
    head = {key: value for key, value in published(kind, network='dwnet').items() if key.startswith('head.')}
    with use_ops(ops):
        (features,) = from_published(kind, dense=False)(image((1, 3, 224, 224), 5))
    logits = F.linear(features.mean((2, 3)), head['head.weight'], head['head.bias'])
    assert logits.shape == (1, NUM_CLASSES)
    np.testing.assert_allclose(logits, fixture(kind, 'dwnet')['x224_logits'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['static', 'dynamic'])
@torch.no_grad()
def test_features_agree_with_published(kind):
    """The sizes of the maps are no multiples of the window, so they are padded."""
    expected = fixture(kind, 'dwnet')
    for i, output in enumerate(from_published(kind, dense=True)(image((1, 3, 90, 75), 6))):
        np.testing.assert_allclose(output, expected[f'xd_f{i}'], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'arch, dynamic, parameters',
    [
        ('tiny', False, 24_172_744),
        ('base', False, 74_347_112),
        ('tiny', 'homogeneous', 51_131_752),
        ('base', 'homogeneous', 161_597_928),
        ('tiny', 'inhomogeneous', 26_244_280),
        ('base', 'inhomogeneous', 80_253_608),
    ],
)
def test_variant_has_the_published_size(arch, dynamic, parameters):
    """Only the last number is not published; it is counted in the same way."""
    with torch.device('meta'):
        backbone = fcvit_mm.DWNet(arch, dynamic, **CLASSIFIER)
    assert count_parameters(backbone) + 1000 * backbone.out_channels[-1] + 1000 == parameters


@pytest.mark.parametrize('kind', DWNETS)
@pytest.mark.parametrize('dense', [False, True])
def test_published_names_round_trip(kind, dense):
    if dense and kind == 'inhomogeneous':
        pytest.skip('no dense model of that kind is published')
    theirs = {key: value for key, value in published(kind, dense, 'dwnet').items() if not key.startswith('head.')}
    ours = {NAMES.to_ours(key): value for key, value in theirs.items()}
    back = NAMES.to_published(ours)
    assert list(back) == list(theirs)
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


@torch.no_grad()
def test_homogeneous_kernels_are_made_from_the_mean_of_each_image():
    torch.manual_seed(0)
    conv = DynamicDepthwiseConv(8, 7).double().eval()
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 8, 9, 11, dtype=torch.double)
    for one, out in zip(x, conv(x)):
        hidden = F.relu(conv.norm(conv.fc1(one.mean((1, 2)).view(1, 8, 1, 1))))
        kernels = conv.fc2(hidden).view(8, 1, 7, 7)
        torch.testing.assert_close(F.conv2d(one, kernels, conv.bias, padding=3, groups=8), out)


@torch.no_grad()
def test_inhomogeneous_kernels_are_made_at_each_position():
    torch.manual_seed(0)
    conv = InhomogeneousDepthwiseConv(8, 7, group_channels=4).double().eval()
    x = torch.randn(1, 8, 9, 11, dtype=torch.double)
    out, padded = conv(x), F.pad(x, (3, 3, 3, 3))
    kernels = conv.fc2(F.relu(conv.norm(conv.fc1(x)))).view(2, 7, 7, 9, 11)
    for c, i, j in [(0, 0, 0), (3, 8, 10), (4, 4, 5), (7, 2, 9)]:
        expected = (padded[0, c, i : i + 7, j : j + 7] * kernels[c // 4, :, :, i, j]).sum()
        torch.testing.assert_close(out[0, c, i, j], expected)


def test_batch_of_one_cannot_train_homogeneous_kernels():
    model = micro(dynamic='homogeneous').train()
    with pytest.raises(ValueError, match='at least 2 images in training, got 1.*norm_eval=True'):
        model(torch.randn(1, 3, 32, 32))
    micro(dynamic='homogeneous', norm_eval=True).train()(torch.randn(1, 3, 32, 32))


@torch.no_grad()
def test_input_is_padded_before_the_first_norm():
    torch.manual_seed(0)
    mixer = DWMixer(4, nn.Conv2d(4, 4, 7, padding=3, groups=4), window=7).eval()
    nn.init.ones_(mixer.norm1.bias)
    x = torch.randn(1, 4, 14, 10)
    padded = F.pad(x, (0, 4))
    torch.testing.assert_close(mixer(x), mixer(padded)[..., :10])
    unpadded = mixer.norm3(mixer.fc2(F.relu(mixer.norm2(mixer.dwconv(F.relu(mixer.norm1(mixer.fc1(x))))))))
    torch.testing.assert_close(mixer(x)[..., :7], unpadded[..., :7])
    assert (mixer(x) - unpadded)[..., 9].abs().max() > 1e-3


@torch.no_grad()
def test_patch_merging_is_column_major():
    merging = PatchMerging(1, 4)
    merging.norm = nn.Identity()
    merging.reduction.weight.copy_(torch.eye(4))
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert merging(x.view(1, 1, 2, 2)).flatten().tolist() == [0, 2, 1, 3]
    assert merging(torch.ones(1, 1, 3, 5)).shape == (1, 4, 2, 3)


def test_output_norms():
    assert isinstance(micro().norm0, nn.BatchNorm2d)
    assert isinstance(micro(norm_cfg=dict(type='SyncBN', requires_grad=True)).norm3, nn.SyncBatchNorm)
    norm = micro(norm_cfg=dict(type='LN', eps=1e-3)).norm3
    assert isinstance(norm, nn.LayerNorm) and norm.eps == 1e-3
    assert micro(norm_cfg=dict(type='BN', momentum=0.5)).norm1.momentum == 0.5
    assert not micro(norm_cfg=dict(type='BN', requires_grad=False)).norm1.weight.requires_grad


def test_position_embedding():
    model = micro(position_size=4).eval()
    assert model.stem.pos_embed.shape == (1, 8, 4, 4)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        without = model.stem.norm(model.stem.proj(x))
        torch.testing.assert_close(model.stem(x), without + model.stem.pos_embed)
        nn.init.constant_(model.stem.pos_embed, 2.0)
        x = torch.randn(1, 3, 45, 20)
        shifted = micro().eval()
        shifted.load_state_dict({key: value for key, value in model.state_dict().items() if 'pos_embed' not in key})
        torch.testing.assert_close(model.stem(x), shifted.stem(x) + 2)
    model(x)[0].sum().backward()
    assert model.stem.pos_embed.grad.abs().sum() > 0
    assert model.get_layer_depth('stem.pos_embed')[0] == 0


@pytest.mark.parametrize('shape', [(1, 64, 8), (1, 8, 8, 8)], ids=['classifier', 'dense'])
def test_position_embedding_of_another_size_is_resized(shape, tmp_path):
    names = NAMES.to_published(micro(position_size=8).state_dict())
    names['absolute_pos_embed'] = torch.full(shape, 3.0)
    torch.save({'model': names}, tmp_path / 'a.pth')
    model = micro(position_size=4)
    load_pretrained(model, str(tmp_path / 'a.pth'))
    torch.testing.assert_close(model.stem.pos_embed.detach(), torch.full((1, 8, 4, 4), 3.0))


def test_classifier_norm_is_not_loaded_into_a_dense_model(tmp_path):
    torch.save({'model': published('static', network='dwnet')}, tmp_path / 'a.pth')
    model = fcvit_mm.DWNet(**dwnet_arguments('static'))
    load_pretrained(model, str(tmp_path / 'a.pth'))
    assert model.norm3.weight.eq(1).all()
    torch.testing.assert_close(
        model.stem.norm.weight.detach(), published('static', network='dwnet')['patch_embed.norm.weight']
    )
    classifier = fcvit_mm.DWNet(**dwnet_arguments('static'), **CLASSIFIER)
    load_pretrained(classifier, str(tmp_path / 'a.pth'))
    assert not classifier.norm3.weight.eq(1).any()


def test_static_weights_in_a_dynamic_network_are_refused(tmp_path):
    torch.save({'model': published('static', network='dwnet')}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'\(static\), the backbone is DWNet .*\(homogeneous\)'):
        load_pretrained(fcvit_mm.DWNet(**dwnet_arguments('dynamic')), str(tmp_path / 'a.pth'))


def test_initial_weights():
    block = micro(arch=dict(MICRO, channels=(64, 128, 24, 32)), dynamic='homogeneous').stages[0].blocks[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not block.mlp.fc1.bias.any() and not block.mixer.dwconv.bias.any()


@pytest.mark.parametrize(
    'options, error, words',
    [
        (dict(arch='small'), ValueError, ["unknown arch 'small'", 'base', 'tiny']),
        (dict(arch=dict(depths=(1, 1, 1, 1))), ValueError, ['lacks', 'channels']),
        (dict(arch=dict(MICRO, num_heads=2)), ValueError, ['unknown', 'num_heads']),
        (dict(dynamic='both'), ValueError, ["dynamic is 'both'", "'homogeneous', 'inhomogeneous'"]),
        (dict(dynamic=True), ValueError, ['dynamic is True', 'expected one of False']),
        (
            dict(dynamic='inhomogeneous', arch=dict(depths=(1,) * 4, channels=(8,) * 4)),
            ValueError,
            ['group_channels=None', 'one divisor'],
        ),
        (
            dict(dynamic='inhomogeneous', arch=dict(MICRO, group_channels=(3, 4, 6, 8))),
            ValueError,
            ['group_channels=(3, 4, 6, 8)', '(8, 16, 24, 32)'],
        ),
        (
            dict(dynamic='homogeneous', arch=dict(MICRO, channels=(2, 4, 8, 16))),
            ValueError,
            ['(2, 4, 8, 16)', 'at least 4'],
        ),
        (dict(norm_cfg=dict(type='GN')), ValueError, ["'GN'", "['LN', 'BN', 'SyncBN']"]),
        (dict(norm_cfg=dict(eps=1.0)), ValueError, ['type is one of']),
        (dict(drop_path_rate=1.0), ValueError, ['drop_path_rate is 1.0', 'less than 1']),
        (dict(position_size=0), ValueError, ['position_size is 0', 'at least 1']),
        (dict(depth=50), TypeError, ['depth']),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error) as caught:
        micro(**options)
    for word in words:
        assert word in str(caught.value)
