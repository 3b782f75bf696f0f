"""Loaded networks prepare images as the test pipelines of the libraries do."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from harness import ROOT
from image_files import LOADERS, write_segmentor
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from fcvit_mm.apis.load import _load_weights, build_model, input_channels, load_network
from fcvit_mm.apis.preprocessing import NetworkError
from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.engine.config import ConfigError, load_config
from fcvit_mm.images import ImageError, read_image

#: One config of each library.
CONFIGS = {
    'mmpretrain': 'classification/fcvit_tiny_in1k.py',
    'mmdet': 'detection/mask_rcnn_fcvit_tiny_coco.py',
    'mmseg': 'segmentation/upernet_fcvit_tiny_ade20k.py',
}


@lru_cache(maxsize=None)
def project_network(library):
    """Return a config of this project for a library, and its network with random weights. Do not change the network."""
    pytest.importorskip(library)
    path = str(ROOT / 'configs' / CONFIGS[library])
    return path, load_network(path)


@pytest.fixture
def image_file(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (80, 60)))
    return str(path)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
@torch.no_grad()
def test_images_are_prepared_as_in_testing(scope, image_file):
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
    assert len(network.model.backbone(small.image)[-1]) == 1


def test_timm_networks(tmp_path, image_file):
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
    assert network.model(network.prepare(prepared.pixels, (64, 96)).image).shape == (1, 7)
    with pytest.raises(
        CheckpointError,
        match=r'deit.pth does not fit timm:deit_tiny_patch16_224: (?s:.)*head(?s:.)*Give a checkpoint of',
    ):
        load_network('timm:deit_tiny_patch16_224', str(tmp_path / 'deit.pth'))
    with pytest.raises(NetworkError, match='a mean and standard deviation for 3 channels, but in_chans=1: prepare'):
        load_network('timm:vit_tiny_patch16_224', options=dict(in_chans=1, depth=1)).prepare(image_file)
    with pytest.raises(NetworkError, match="timm has no model 'deit_huge', but deit.*: give one of .*list_models"):
        load_network('timm:deit_huge')
    with pytest.raises(NetworkError, match="cannot create timm:deit_tiny_patch16_224 with .*'widht'.*Correct or omit"):
        load_network('timm:deit_tiny_patch16_224', options=dict(widht=3, dynamic_img_size=False))


def test_model_of_another_library(tmp_path):
    """Its test pipeline may require more than an image, such as the box of a person."""
    pytest.importorskip('mmdet')
    path = tmp_path / 'pose.py'
    path.write_text(
        "default_scope = 'otherlab'\n"
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='NoStep')]))\n"
        "model = dict(type='OtherPose', backbone=dict(type='OtherBackbone'), head=dict(in_channels=24),\n"
        "             data_preprocessor=dict(type='ImgDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3))\n"
    )
    network = load_network(str(path))
    assert network.task == 'otherlab'
    image = np.zeros((40, 50, 3), np.uint8)
    assert network.prepare(image, (64, 32)).image.shape == (1, 3, 64, 32)
    with pytest.raises(
        NetworkError, match='pose.py has a test pipeline of otherlab, which may need more than an image: '
    ):
        network.prepare(image)


def test_checkpoints_are_loaded_and_must_match(tmp_path):
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
    with pytest.raises(NetworkError, match='untested.py has no test_dataloader, which defines how .*: give a size'):
        untested.prepare(np.zeros((40, 50, 3), np.uint8))


@pytest.mark.parametrize(
    ('meta', 'names'),
    [
        (dict(dataset_meta=dict(classes=['a', 'b'], CLASSES=['c'])), ('a', 'b')),
        (dict(dataset_meta=dict(CLASSES=('a', 'b'))), ('a', 'b')),
        (dict(dataset_meta=None, CLASSES=('a', 'b')), ('a', 'b')),
        (dict(CLASSES=None), None),
        (dict(), None),
        (None, None),
    ],
)
def test_class_names_in_checkpoints_of_earlier_versions(meta, names, tmp_path, monkeypatch):
    monkeypatch.setattr('fcvit_mm.apis.load.check_fits', lambda model, checkpoint: None)
    model = torch.nn.Linear(2, 2)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'a.pth')
    assert _load_weights(model, str(tmp_path / 'a.pth'), Config()) == names


def test_random_weights_are_reproducible():
    pytest.importorskip('timm')
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = (load_network('timm:vit_tiny_patch16_224', options=dict(img_size=32, depth=1)) for _ in range(2))
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize('name', LOADERS)
def test_images_with_any_number_of_channels_are_prepared_as_in_testing(name, tmp_path):
    pytest.importorskip('mmseg')
    path, config = write_segmentor(tmp_path, name)
    network = load_network(config)
    channels = LOADERS[name][0]
    prepared = network.prepare(path)
    steps = load_config(config).test_dataloader.dataset.pipeline
    steps[0].pop('backend_args', None)
    with DefaultScope.overwrite_default_scope('mmseg'):
        packed = Compose([step for step in steps if step['type'] != 'LoadAnnotations'])(dict(img_path=path))
    samples = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    torch.testing.assert_close(prepared.image, network.model.data_preprocessor(samples, False)['inputs'])
    assert prepared.image.shape == (1, channels, 64, 96) and network.in_channels == channels
    assert prepared.pixels.shape == (64, 96, 3) and prepared.pixels.dtype == np.uint8 and np.ptp(prepared.pixels) > 200
    # An array gives the same result as its file, and any size is possible.
    torch.testing.assert_close(network.prepare(network.read(path)).image, prepared.image)
    assert network.prepare(path, (32, 64)).image.shape == (1, channels, 32, 64)
    colors = np.zeros((40, 60, 3), np.uint8)
    if name == 'grey.jpg':
        assert network.prepare(colors).image.shape == (1, 1, 64, 96)
    else:
        with pytest.raises(NetworkError, match=f'the image has 3 channels, but the network takes {channels}'):
            network.prepare(colors)


@pytest.mark.parametrize('name', ['bands8.tif', 'array25.npy'])
def test_images_that_the_loading_steps_cannot_read(name, tmp_path, image_file):
    pytest.importorskip('mmseg')
    path, config = write_segmentor(tmp_path, name)
    network = load_network(config)
    Path(path).write_bytes(Path(path).read_bytes()[:2000])
    with pytest.raises(ImageError, match=f'{name} cannot be decoded'):
        network.prepare(path)
    with pytest.raises(
        (ImageError, NetworkError), match='image.png (cannot be read by the loading steps|has 3 channels)'
    ):
        network.prepare(image_file)


@pytest.mark.parametrize('settings', [dict(), dict(stats_mode='N', eps=1e-3, requires_grad=True)])
def test_mmsyncbn_is_replaced_by_batch_norm(settings):
    """mmcv's MMSyncBN requires a process group when it is built; its settings are kept."""
    pytest.importorskip('mmseg')
    norm = dict(type='MMSyncBN', **settings)
    config = str(ROOT / 'configs' / CONFIGS['mmseg'])
    network = load_network(config, options={'model.decode_head.norm_cfg': norm, 'model.auxiliary_head': None})
    norms = [each for each in network.model.decode_head.modules() if 'Norm' in type(each).__name__]
    assert norms and all(each.eps == settings.get('eps', 1e-5) for each in norms)
    assert not any(isinstance(each, torch.nn.SyncBatchNorm) for each in norms)


@pytest.mark.parametrize(
    ('backbone', 'mean', 'channels'),
    [
        (dict(type='MobileNetV2'), [123.0, 116.0, 103.0], 3),
        (dict(type='MobileNetV2'), [127.5], 3),
        (dict(type='ShuffleNetV2'), None, 3),
        (dict(type='EfficientNet', arch='b0'), None, 3),
        (dict(type='LeNet5'), [33.0], 1),
        (dict(type='ResNet', depth=18), [0.0], 3),
        (dict(type='ResNet', depth=18, in_channels=5), [0.0] * 5, 5),
        (dict(type='FCViT', arch='tiny'), None, 3),
        (dict(type='FCViT', arch='tiny', in_channels=4), [0.0] * 4, 4),
    ],
)
def test_number_of_input_channels(backbone, mean, channels):
    pytest.importorskip('mmpretrain')
    model = dict(type='ImageClassifier', backbone=backbone)
    cfg = Config(dict(default_scope='mmpretrain', model=model))
    if mean:
        cfg.data_preprocessor = dict(mean=mean, std=mean, num_classes=2)
    assert input_channels(build_model(cfg), cfg) == channels


def test_number_of_input_channels_from_an_attribute():
    class Own(torch.nn.Sequential):
        in_channels = 7

    cfg = Config(dict(model=dict(backbone=dict(type='Own'))))
    assert input_channels(Own(torch.nn.Conv2d(7, 8, 3)), cfg) == 7
    assert input_channels(Own(torch.nn.Conv2d(3, 7, 3)), cfg) == 3
