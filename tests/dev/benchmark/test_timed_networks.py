"""The networks that can be timed, and the ways to run them."""

import pytest
import torch
from uninitialized import uninitialized

import fcvit_mm
from fcvit_mm.errors import UserError
from fcvit_mm.models.variants import VARIANTS
from fcvit_mm.ops import use_ops

pytest.importorskip('timm')


def test_every_variant_can_be_run_in_every_way(load):
    known = load('timed_networks').choices()
    for name in VARIANTS:
        assert known[name][1].optimized and known[f'{name}_reference'][1].layout == 'NCHW'
        assert known[f'{name}_reference_channels_last_compiled'] == (
            name,
            known[f'{name}_reference_channels_last'][1],
            'compiled',
        )
        assert known[f'{name}_graphs'][1].graphs
    assert known['convnext_tiny_replayed'][2] == 'replayed' and not known['convnext_tiny'][2]


@pytest.mark.parametrize('name', {variant.network: name for name, variant in reversed(VARIANTS.items())}.values())
def test_every_network_returns_class_scores_or_four_maps(load, name):
    networks = load('timed_networks')
    task = networks.Task('inference', 'meta', 1, (64, 64), False, 1)
    with uninitialized():
        model, images = networks.counted(name, task, 'meta', 2)
        dense, image = networks.counted(name, task._replace(features=True), 'meta', 1)
    assert model(images).shape == (2, 1000)
    assert [tuple(x.shape[2:]) for x in dense(image)] == [(16, 16), (8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize('features', [False, True])
def test_all_ways_give_the_same_outputs(load, features):
    networks = load('timed_networks')
    task = networks.Task('inference', 'cpu', 2, (32, 48), features, 1)
    images = torch.rand(2, 3, 32, 48)
    outputs = []
    for way in ('reference', 'as_built'):
        with torch.no_grad(), use_ops(networks.WAYS[way].ops):
            outputs.append(networks.build('fcvit_tiny', networks.WAYS[way], task).eval()(images))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    if features:
        assert [x.shape[1] for x in outputs[0]] == [32, 64, 160, 320]
    else:
        assert outputs[0].shape == (2, 1000)


def test_compiled_networks_have_constant_weights_in_inference(load):
    """As with ``torch.compile`` and freezing, later changes of weights have no effect."""
    load('timed_networks').let_compile_all(freeze=True)
    torch._dynamo.reset()
    layer, x = torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)
    compiled = torch.compile(layer)
    with torch.no_grad():
        before = compiled(x)
        layer.bias.add_(1)
        torch.testing.assert_close(compiled(x), before)


def test_reference_keeps_the_given_memory_layout(load):
    """By default, the backbone changes the layout on a CPU."""
    networks = load('timed_networks')
    task = networks.Task('inference', 'cpu', 1, (32, 32), True, 1)
    seen = []
    model = networks.build('fcvit_tiny', networks.WAYS['reference'], task).eval()
    model.stages[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].is_contiguous()))
    model(torch.rand(1, 3, 32, 32))
    model.to(memory_format=torch.channels_last)
    model(torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert seen == [True, False]


@pytest.mark.parametrize('name', ['convnext_tiny', 'swin_tiny_patch4_window7_224', 'poolformer_s24', 'resnet50'])
def test_other_networks_return_maps_for_any_size(load, name):
    networks = load('timed_networks')
    task = networks.Task('inference', 'meta', 1, (64, 96), True, 1)
    with uninitialized():
        model, images = networks.counted(name, task, 'meta', 1)
    maps = model(images)
    channels_last = name.startswith('swin')
    assert [x.shape[1:3] if channels_last else x.shape[2:] for x in maps[-4:]] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_missing_optimize_for_inference_is_reported(load, monkeypatch):
    networks = load('timed_networks')
    monkeypatch.delattr(fcvit_mm, 'optimize_for_inference', raising=False)
    task = networks.Task('inference', 'cpu', 1, (32, 32), False, 1)
    with pytest.raises(UserError, match='no optimize_for_inference: use fcvit_tiny_as_built'):
        networks.prepare(networks.parse_network('fcvit_tiny', 'float32'), task, 'channels_last')


@pytest.mark.parametrize('mode, norms', [('inference', 0), ('train', 53)])
def test_batch_norms_of_other_networks_are_fused_for_inference(load, mode, norms):
    """As for the networks of this package; in training they are not fused."""
    networks = load('timed_networks')
    task = networks.Task(mode, 'cpu', 1, (64, 64), False, 1)
    peer = networks.build('resnet50', networks.choices()['resnet50'][1], task)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in peer.modules()) == norms
