"""Class activation maps agree with pytorch-grad-cam and the definition, for different classifiers."""

import sys

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from networks import TOY_CLASSES as NAMES
from networks import Toy, build_random, fcvit, vit

from fcvit_mm import DWNet
from fcvit_mm.analysis.cam import (
    METHODS,
    class_activation_map,
    describe_class_map,
    draw_class_maps,
    find_class,
    load_method,
)
from fcvit_mm.analysis.plots import figure_png, to_json_data
from fcvit_mm.analysis.recording import AnalysisError, collect_features


@pytest.fixture
def library():
    return pytest.importorskip('pytorch_grad_cam')


@pytest.fixture
def image():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def classifier(backbone):
    """Return mmpretrain's classifier with a backbone."""
    models = pytest.importorskip('mmpretrain.models')
    heads = {4: (models.GlobalAveragePooling(), 32), 2: (None, 32)}
    neck, channels = heads[backbone.eval()(torch.rand(1, 3, 32, 32))[-1].ndim]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return models.ImageClassifier(backbone, neck, models.LinearClsHead(3, channels)).eval()


@pytest.mark.parametrize('method', METHODS)
def test_maps_agree_with_pytorch_grad_cam(library, image, method):
    torch.manual_seed(0)
    network = Toy()
    found = class_activation_map(network, image, 1, method=method)
    kind = getattr(library, METHODS[method])
    with kind(network, [network.blocks[0]]) as cam:
        expected = cam(image, [lambda scores: scores[1]])[0]
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    scores = network(image)[0].softmax(0)
    assert found.layer == 'blocks.0' and found.target == 1 and found.prediction == scores.argmax()
    assert found.score == pytest.approx(scores[1].item())
    assert found.prediction_score == pytest.approx(scores.max().item())


def test_gradcam_agrees_with_the_definition(library, image):
    torch.manual_seed(0)
    network = Toy()
    maps = network.blocks[0](image)[0].detach()
    # The gradient at each position is the head's weight divided by the number of positions.
    expected = (network.head.weight[2].detach()[:, None, None] * maps).sum(0).relu()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(class_activation_map(network, image, 2).values, expected, atol=1e-5)


def test_map_is_high_where_the_class_is(library):
    network = Toy()
    with torch.no_grad():
        network.blocks[0].weight.zero_()
        network.blocks[0].bias.zero_()
        network.blocks[0].weight[0, 0, 1, 1] = 1  # channel 0 is the red value of the pixel
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[2, 0] = 1  # class 2 is red
    pixels = torch.zeros(1, 3, 20, 30)
    pixels[:, 0, 4:8, 20:24] = 1
    pixels[:, 1, 12:16, 2:6] = 1
    found = class_activation_map(network, pixels, 'rose', class_names=NAMES)
    assert found.prediction == 2
    np.testing.assert_allclose(found.values, pixels[0, 0], atol=1e-6)
    numbers = to_json_data(describe_class_map(found, NAMES))
    assert numbers['target_name'] == 'rose' and numbers['area_above_half'] == pytest.approx(16 / 600)
    assert numbers['peak'] == pytest.approx([4.5 / 20, 20.5 / 30])
    # The map of a class with a negative weight is zero everywhere.
    with torch.no_grad():
        network.head.weight[1, 0] = -1
    empty = class_activation_map(network, pixels, 1)
    assert not empty.values.any() and describe_class_map(empty)['peak'] is None
    figure = draw_class_maps([np.zeros((20, 30, 3), np.uint8)] * 2, [[found, empty], [found, empty]], NAMES)
    assert figure_png(figure).startswith(b'\x89PNG')


def test_classifiers_with_backbones_of_this_project(library, image):
    network = classifier(build_random(fcvit, out_indices=3))
    large = F.interpolate(image, (64, 96))
    found = class_activation_map(network, large)
    assert found.layer == 'stages.3.blocks.0' and found.values.shape == (64, 96) and found.values.max() > 0.9
    named = class_activation_map(network, large, layer='backbone.stages.2.blocks.1')
    assert named.layer == 'stages.2.blocks.1' and not np.allclose(named.values, found.values)
    with pytest.raises(AnalysisError, match=r'stages.3.blocks.0 .* single position for an image of \(32, 32\) pixels'):
        class_activation_map(network, image)
    dwnet = classifier(DWNet(dict(depths=(1, 1, 1, 1), channels=(8, 8, 16, 32)), out_indices=3))
    assert class_activation_map(dwnet, large).layer == 'stages.3.blocks.0'
    # The head reads only the class token; the last layer that uses patch tokens is the first norm of the last block.
    tokens = class_activation_map(classifier(build_random(vit, out_type='cls_token')), image)
    assert tokens.layer == 'stages.0.blocks.2.norm1' and tokens.values.max() > 0.9
    with pytest.raises(AnalysisError, match='does not depend on the map at stages.0.blocks.2 .* earlier layer'):
        class_activation_map(classifier(build_random(vit, out_type='cls_token')), image, layer='stages.0.blocks.2')


def test_timm_classifiers_and_channels_last_maps(library, image):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    swin = timm.create_model(
        'swin_tiny_patch4_window7_224',
        img_size=32,
        depths=(1, 1),
        embed_dim=16,
        num_heads=(2, 2),
        window_size=4,
        num_classes=3,
    )
    found = class_activation_map(swin, image)
    assert found.layer == 'layers.1.blocks.0' and found.values.shape == (32, 32)
    # The norms in such a block also return (B, H, W, C).
    maps = collect_features(swin, image, ['layers.0.blocks.0', 'layers.0.blocks.0.norm2'])
    assert [tuple(values.shape) for values in maps.values()] == [(1, 16, 8, 8)] * 2
    mean_pooled = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1, num_classes=3, global_pool='avg')
    assert class_activation_map(mean_pooled, image).layer == 'blocks.0'


def test_model_is_not_changed(library, image):
    network = Toy().train()
    network.head.requires_grad_(False)
    class_activation_map(network, image)
    assert network.training and network.blocks[0].weight.requires_grad and not network.head.weight.requires_grad
    assert network.blocks[0].weight.grad is None and not network.blocks[0]._forward_hooks


@pytest.mark.parametrize('target, expected', [(1, 1), ('1', 1), ('rose', 2), ('Rose', 2)])
def test_class_is_given_by_index_or_name(target, expected):
    assert find_class(target, 3, NAMES) == expected


@pytest.mark.parametrize(
    'target, names, message',
    [
        ('tulip', NAMES, "unknown class 'tulip', expected an index, 0 to 2, or one of daisy, dandelion, rose"),
        ('tulip', None, 'does not contain the names of its 3 classes, expected an index, 0 to 2'),
        (3, NAMES, 'target is 3, expected 0 to 2 for the 3 classes'),
        ('-1', NAMES, 'target is -1, expected 0 to 2'),
    ],
)
def test_unknown_classes_are_refused(target, names, message):
    with pytest.raises(AnalysisError, match=message):
        find_class(target, 3, names)


def test_long_lists_of_classes_are_shortened():
    names = [f'class{i}' for i in range(1000)]
    with pytest.raises(AnalysisError, match=r'one of class999, .*, \.\.\.') as error:
        find_class('classs999', 1000, names)
    assert len(str(error.value)) < 500


def test_unsuitable_networks_and_layers_are_refused(library, image):
    with pytest.raises(AnalysisError, match=r"no layer 'blocks.7'.*Its blocks: blocks.0"):
        class_activation_map(Toy(), image, layer='blocks.7')
    with pytest.raises(AnalysisError, match="unknown method 'magic', expected one of gradcam"):
        class_activation_map(Toy(), image, method='magic')
    with pytest.raises(AnalysisError, match=r'FCViT returns tuple, expected scores \(B, classes\): give a classifier'):
        class_activation_map(build_random(fcvit), image)
    with pytest.raises(AnalysisError, match='2 images given, expected one: call this for each'):
        class_activation_map(Toy(), image.expand(2, -1, -1, -1))

    class Aside(Toy):
        def __init__(self):
            super().__init__()
            self.aside = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    with pytest.raises(AnalysisError, match='does not depend on the map at aside'):
        class_activation_map(Aside(), image, layer='aside')

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = fcvit()

    with pytest.raises(AnalysisError, match='Detector with backbone FCViT is not a classifier: give a classifier'):
        class_activation_map(Detector(), image)


def test_missing_pytorch_grad_cam_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(AnalysisError, match=r"pip install --no-build-isolation -e '.\[analysis\]'"):
        load_method('gradcam')
