"""What the analyses read: networks of any kind, their layers by name, attention as the layers compute it, features."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from harness import ROOT
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from networks import TRANSFORMERS, Convs, fcvit, swin, timm_vit, vit
from networks import build_random as build

from fcvit_mm import analysis
from fcvit_mm.analysis import probe
from fcvit_mm.analysis.probe import AnalysisError, collect_attention, collect_features, run_backbone
from fcvit_mm.apis.load import NetworkError, fit_image, load_network, pad_image
from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.engine.config import ConfigError, load_config
from fcvit_mm.images import ImageError, read_image


@pytest.fixture
def image_file(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (80, 60)))
    return str(path)


def reapply(module, weights, x):
    """What a self-attention gives with this matrix ``(B, heads, N, N)``."""
    values = module.qkv(x).unflatten(2, (3, module.num_heads, -1))[:, :, 2].transpose(1, 2)
    return module.proj((weights @ values).transpose(1, 2).flatten(2))


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', TRANSFORMERS)
@torch.no_grad()
def test_attention_is_what_the_layer_computes(kind):
    model = build(TRANSFORMERS[kind])
    image = torch.randn(2, 3, 32, 32)
    layers = probe.attention_layers(model)
    found = collect_attention(model, image)
    with probe.recording(layers, lambda name, module, args, kwargs, output: (args[0], output)) as seen:
        run_backbone(model, image)
    assert list(found) == list(seen) and len(found) >= 2
    for name, (x, output) in seen.items():
        attention = found[name]
        torch.testing.assert_close(
            reapply(layers[name], attention.weights.flatten(0, 1), x), output, atol=1e-4, rtol=1e-4
        )
        assert len(attention.weights) == 2 and attention.weights.shape[1] == len(attention.positions)
        patches = attention.positions[attention.positions >= 0]
        assert sorted(patches.tolist()) == list(range(attention.grid[0] * attention.grid[1]))
    if 'cait' not in kind:  # talking heads are mixed after the softmax
        torch.testing.assert_close(attention.weights.sum(-1), torch.ones(attention.weights.shape[:-1]))
    if kind in ('vit', 'swin'):
        assert (attention.weights < 0).any(), 'AttnScale is not in the matrix'


@torch.no_grad()
def test_windows_are_put_where_they_stand():
    """A shifted window on a map that it does not divide: what a position takes from the others gives its output."""
    model = build(swin)
    image = torch.randn(1, 3, 36, 44)
    name = 'stages.0.blocks.1'
    block = model.get_submodule(name)
    block.feat_scale = torch.nn.Identity()
    attention = collect_attention(model, image, [name])[name]
    assert attention.grid == (9, 11) and (attention.positions < 0).any()
    x = torch.randn(1, 9, 11, 16)
    with probe.recording({name: block.norm1}, lambda name, module, args, kwargs, output: output) as normed:
        run_backbone(model, image)
    x = normed[name]
    tokens = torch.cat((x.flatten(1, 2), torch.zeros(1, 1, 16)), 1)  # what pads comes last, at -1
    expected = block._attn(x).flatten(1, 2)
    for window, positions in enumerate(attention.positions):
        given = reapply(block.attn, attention.weights[:, window], tokens[:, positions])
        inside = positions >= 0
        torch.testing.assert_close(given[:, inside], expected[:, positions[inside]], atol=1e-5, rtol=1e-5)


def test_attention_is_reduced_layer_by_layer_and_hooks_go():
    model = build(timm_vit)
    found = collect_attention(model, torch.randn(1, 3, 32, 32), ['blocks.1'], lambda attention: attention.grid)
    assert found == {'blocks.1': (4, 4)}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_unknown_forms_of_attention_are_left_alone():
    """A subclass with a ``forward`` of its own may compute anything: better no map than a wrong one."""
    model = build(timm_vit)
    known = type(model.blocks[0].attn)
    for block in model.blocks:
        block.attn.__class__ = type('Other', (known,), dict(forward=lambda self, x: x))
    with pytest.raises(AnalysisError, match='VisionTransformer has no attention that can be shown, expected a ViT'):
        collect_attention(model, torch.randn(1, 3, 32, 32))


def test_wrong_names_list_the_choices():
    model = build(vit)
    with pytest.raises(
        AnalysisError,
        match=r"no attention layer is called 'stages.0.blocks.9', expected one of these.*"
        r'stages.0.blocks.0, stages.0.blocks.1, stages.0.blocks.2$',
    ):
        collect_attention(model, torch.randn(1, 3, 32, 32), ['stages.0.blocks.9'])
    with pytest.raises(
        AnalysisError,
        match=r"ViT has no layer 'stages.0.block.1', but stages.0.blocks.1.*"
        r'Its blocks: stages.0.blocks.0, ',
    ):
        collect_features(model, torch.randn(1, 3, 32, 32), ['stages.0.block.1'])
    # 'stages.1' is not the beginning of 'stages.10', nor 'stage' of 'stages.1'.
    assert probe.select(('stages.1.a', 'stages.10.a'), ['stages.1'], 'x') == ('stages.1.a',)
    with pytest.raises(AnalysisError):
        probe.select(('stages.1.a',), ['stage'], 'x')


# -- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [*TRANSFORMERS, 'fcvit'])
def test_features_are_maps_of_the_blocks(kind):
    model = build(TRANSFORMERS.get(kind, fcvit))
    found = collect_features(model, torch.randn(2, 3, 32, 32))
    assert len(found) >= 2 and all(values.ndim == 4 and len(values) == 2 for values in found.values())
    if kind == 'fcvit':
        assert list(found) == [
            f'stages.{stage}.blocks.{block}' for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
        ]
    else:
        sides = {tuple(values.shape[2:]) for values in found.values()}
        assert sides == ({(8, 8), (4, 4), (2, 2), (1, 1)} if 'swin' in kind else {(4, 4)})


@torch.no_grad()
def test_features_are_those_that_the_network_goes_on_with():
    model, image = build(fcvit), torch.randn(1, 3, 32, 48)
    found = collect_features(model, image)
    torch.testing.assert_close(model.norm3(found['stages.3.blocks.0']), model(image)[3])
    model = build(timm_vit)
    x = model.forward_features(image[..., :32])
    patches = model.norm(collect_features(model, image[..., :32])['blocks.2'].flatten(2).transpose(1, 2))
    torch.testing.assert_close(patches, x[:, 3:])  # after a class token and two registers


def test_features_keep_gradients_and_what_is_overwritten_later():
    model = build(Convs)
    image = torch.randn(1, 3, 8, 8, requires_grad=True)
    with probe.recording_features(model, ['blocks.0']) as values:
        run_backbone(model, image)
    assert (values['blocks.0'] < 0).any(), 'the ReLU that follows has overwritten it'
    values['blocks.0'].sum().backward()
    assert image.grad.abs().sum() > 0


def test_what_gives_no_map_is_told():
    with pytest.raises(AnalysisError, match=r'Convs gives no map \(B, C, H, W\), nor tokens of patches, at blocks.2'):
        collect_features(build(Convs), torch.randn(1, 3, 8, 8), ['blocks.2'])


# -- networks and images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
@torch.no_grad()
def test_images_reach_the_network_as_in_its_test(scope, image_file, project_network):
    path, network = project_network(scope)
    assert network.checkpoint is None and not network.model.training
    pixels = read_image(image_file)
    prepared = network.prepare(pixels)

    steps = load_config(path).test_dataloader.dataset.pipeline
    steps = [step for step in steps if step['type'] != 'LoadAnnotations']
    with DefaultScope.overwrite_default_scope(scope):
        packed = Compose(steps)(dict(img_path=image_file, img_id=0))
    expected = network.model.data_preprocessor(
        dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']]), False
    )['inputs']
    torch.testing.assert_close(prepared.image, expected)
    assert prepared.pixels.shape == (*prepared.image.shape[2:], 3) and prepared.pixels.dtype == np.uint8
    mean, std = network.model.data_preprocessor.mean, network.model.data_preprocessor.std
    shown = (prepared.image[0] * std + mean).permute(1, 2, 0).numpy()
    rows, columns = packed['inputs'].shape[1:]
    np.testing.assert_allclose(shown[:rows, :columns], prepared.pixels[:rows, :columns], atol=0.01)
    small = network.prepare(pixels, (64, 96))
    assert small.image.shape == (1, 3, 64, 96)
    assert list(collect_features(network.model, small.image))[0] == 'stages.0.blocks.0'


def test_networks_of_timm(tmp_path, image_file):
    timm = pytest.importorskip('timm')
    model = timm.create_model('deit_tiny_patch16_224', num_classes=7)
    torch.save(dict(model=model.state_dict()), tmp_path / 'deit.pth')
    network = load_network('timm:deit_tiny_patch16_224', str(tmp_path / 'deit.pth'), options=dict(num_classes=7))
    prepared = network.prepare(read_image(image_file))
    assert prepared.image.shape == (1, 3, 224, 224) and network.name == 'deit_tiny_patch16_224'
    with torch.no_grad():
        torch.testing.assert_close(network.model(prepared.image), model.eval()(prepared.image))
    from PIL import Image

    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config)(Image.open(image_file).convert('RGB'))
    assert (prepared.image[0] - expected).abs().mean() < 0.05
    assert collect_attention(
        network.model, network.prepare(prepared.pixels, (64, 96)).image, reduce=lambda attention: attention.grid
    )['blocks.0'] == (4, 6)
    with pytest.raises(CheckpointError, match=r'deit.pth does not fit timm:deit_tiny_patch16_224: (?s:.)*head'):
        load_network('timm:deit_tiny_patch16_224', str(tmp_path / 'deit.pth'))
    with pytest.raises(NetworkError, match="timm has no model 'deit_huge', but deit.*, .*list_models"):
        load_network('timm:deit_huge')
    with pytest.raises(AnalysisError, match=r'VisionTransformer does not take an image of 50x50|of \(50, 50\) pixels'):
        collect_features(network.model, torch.randn(1, 3, 50, 50))


def test_checkpoints_are_read_and_must_fit(tmp_path, project_network):
    config, random = project_network('mmpretrain')
    weights = random.model.state_dict()
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=('a', 'b')))), tmp_path / 'good.pth')
    network = load_network(config, str(tmp_path / 'good.pth'))
    assert network.class_names == ('a', 'b') and network.name == 'fcvit_tiny_in1k'
    for name, value in network.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert (network.label, random.label) == ('fcvit_tiny_in1k', 'fcvit_tiny_in1k (random weights)')
    torch.save(dict(state_dict=dict(list(weights.items())[:5])), tmp_path / 'other.pth')
    for path, message in (('other.pth', 'does not fit the config'), ('none.pth', 'does not exist')):
        with pytest.raises(CheckpointError, match=message):
            load_network(config, str(tmp_path / path))
    with pytest.raises(ConfigError, match='config none.py does not exist'):
        load_network('none.py')
    (tmp_path / 'empty.py').write_text("default_scope = 'mmpretrain'")
    with pytest.raises(NetworkError, match='empty.py has no model: give the config of a classifier'):
        load_network(str(tmp_path / 'empty.py'))
    (tmp_path / 'untested.py').write_text(f"_base_ = '{config}'\ntest_dataloader = None\n")
    untested = load_network(str(tmp_path / 'untested.py'))
    with pytest.raises(NetworkError, match='untested.py has no test_dataloader that says how .*: give a size'):
        untested.prepare(np.zeros((40, 50, 3), np.uint8))


def test_images(tmp_path, image_file):
    pixels = read_image(image_file)
    assert pixels.shape == (60, 80, 3) and np.array_equal(pixels, cv2.imread(image_file)[..., ::-1])
    (tmp_path / 'cut.png').write_bytes(Path(image_file).read_bytes()[:60])
    for name, message in (('cut.png', 'does not decode'), ('none.png', 'does not exist')):
        with pytest.raises(ImageError, match=f'{name} {message}'):
            read_image(str(tmp_path / name))
    # The middle, proportions kept: of 60x80 to 30x30 the 60x60 in the middle at half the size.
    square = np.zeros((60, 80, 3), np.uint8)
    square[:, 10:70] = 200
    assert (fit_image(square, (30, 30))[:, 4:-4] == 200).all()
    assert (fit_image(square, (30, 40))[:, :4] < 100).all()
    padded = pad_image(square, (64, 96))
    assert padded.shape == (64, 96, 3) and (padded[60:] == padded[0, 95]).all() and (padded[:60, :80] == square).all()
    with pytest.raises(NetworkError, match='0x5: expected'):
        fit_image(square, (0, 5))


def test_images_that_are_none():
    model = build(fcvit)
    for image, message in (
        (np.zeros((8, 8, 3)), 'the image is ndarray, expected'),
        (torch.zeros(8, 8), r'float32 \(8, 8\)'),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 'uint8'),
    ):
        with pytest.raises(AnalysisError, match=message):
            collect_features(model, image)
    with pytest.raises(AnalysisError, match='FCViT does not take an image .* built for 3 input channels, got 4'):
        collect_features(model, torch.zeros(1, 4, 32, 32))
    with pytest.raises(AnalysisError, match='2 images were given, expected one'):
        probe.as_single(model, torch.zeros(2, 3, 32, 32))


def test_modes_are_put_back():
    model = build(fcvit, frozen_stages=1).train()
    before = [module.training for module in model.modules()]
    collect_features(model, torch.randn(1, 3, 32, 32))
    assert [module.training for module in model.modules()] == before and any(before)


def test_nothing_of_the_package_imports_the_analyses():
    package = ROOT / 'fcvit_mm'
    for path in package.rglob('*.py'):
        if package / 'analysis' not in path.parents:
            assert not re.search(r'(fcvit_mm|from [.]+)[.]?analysis|import analysis', path.read_text()), path


def test_public_names():
    assert set(analysis.__all__) <= set(dir(analysis))
    assert all(getattr(analysis, name) is not None for name in analysis.__all__)
    with pytest.raises(AttributeError, match="no attribute 'similarity_map'"):
        analysis.similarity_map  # noqa: B018
