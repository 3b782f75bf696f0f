"""What is FCViT's own: variants, options, the global context. test_family.py asks what every network is asked."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
from networks import FCVIT_OPTIONS as OPTIONS
from networks import NETWORKS, assert_all_grads
from networks import build_fcvit as micro
from uninitialized import uninitialized

import fcvit_mm
from fcvit_mm.models.fcvit import GlobalContext
from fcvit_mm.models.layers import count_parameters

MICRO = NETWORKS['fcvit'].arguments['arch']


@pytest.mark.parametrize(
    'arch, parameters, gigamacs',
    [('tiny', 4_784_752, 0.90), ('b12', 14_701_832, 2.65), ('b24', 26_960_232, 5.06), ('b48', 51_477_032, 9.88)],
)
def test_variant_has_the_published_size(arch, parameters, gigamacs):
    with uninitialized():
        backbone, meta = fcvit_mm.FCViT(arch, out_indices=(-1,)), fcvit_mm.FCViT(arch)
    width = backbone.out_channels[-1]
    assert count_parameters(backbone) + 1000 * width + 1000 == parameters
    macs = 0

    def count(module, _, output):
        nonlocal macs
        macs += output[0].numel() * module.weight[0].numel()

    for module in meta.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    outputs = meta(torch.empty(1, 3, 224, 224, device='meta'))
    assert [x.shape[2] for x in outputs] == [56, 28, 14, 7]
    # The spec's figure counts a little more than convolutions and linear layers (the similarity).
    assert macs / 1e9 == pytest.approx(gigamacs, abs=0.03)


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize('size', [(64, 64), (75, 61), (33, 128)], ids=str)
def test_every_option_gives_a_pyramid_and_gradients(options, size):
    model = micro(**options).train()
    x = torch.randn(2, model.in_channels, *size, requires_grad=True)
    outputs = model(x)
    for output, channels, stride in zip(outputs, model.out_channels, model.out_strides):
        assert output.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    sum(output.square().sum() for output in outputs).backward()
    assert_all_grads(model)
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_every_option_survives_a_round_trip(options):
    model = micro(**options).eval()
    twin = micro(**options).eval()
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, model.in_channels, 40, 40)
    with torch.no_grad():
        expected = model(x)
        for other in (twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for a, b in zip(other(x), expected):
                assert torch.equal(a, b)


def test_options_add_or_remove_their_parameters():
    def names(**options):
        return {name for name, _ in micro(**options).named_parameters()}

    default = names()
    assert not any('mixes.1.' in name for name in names(kernel_sizes=(11,)))
    assert not any('global_context' in name for name in names(global_context=False))
    assert not any('rescale' in name for name in names(weighted=False))
    assert not any('channel_mixer.dwconv' in name for name in names(channel_mixer_dwconv=False))
    assert not any('mixes.0.fc2' in name for name in names(token_mix_reduction=1))
    assert not any('layer_scale' in name for name in names(layer_scale_init_value=None))
    assert any('spatial_attention' in name for name in names(spatial_attention=True) - default)
    assert any('channel_attention' in name for name in names(channel_attention=True) - default)
    weight = micro(kernel_sizes=(5, 7)).stages[0].blocks[0].token_mixer.mixes[1].dwconv.weight
    assert weight.shape[-2:] == (7, 7)


def test_roi_align_agrees_with_that_of_a_contiguous_copy():
    ops = pytest.importorskip('mmcv.ops')
    features = micro(out_indices=0)(torch.randn(1, 3, 64, 64))[0].detach()
    boxes = torch.tensor([[0.0, 4.0, 4.0, 40.0, 32.0]])
    cropped = ops.roi_align(features, boxes, (2, 2), 0.25, 2, 'avg', True)
    torch.testing.assert_close(
        cropped,
        ops.roi_align(features.clone(memory_format=torch.contiguous_format), boxes, (2, 2), 0.25, 2, 'avg', True),
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_similarity_is_computed_in_float32(dtype):
    context = GlobalContext(64, 8)
    x = 20 * torch.randn(2, 64, 40, 40) + 3
    low = x.to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        similarity = context.similarity(low)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, context.similarity(low.float()))
    torch.testing.assert_close(similarity.mean((1, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(similarity.std((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


def test_single_value_similarity_is_finite():
    """The standard deviation of one head at one position is undefined."""
    assert all(x.isfinite().all() for x in micro(arch=dict(MICRO, num_heads=1)).eval()(torch.randn(1, 3, 1, 1)))


@torch.no_grad()
def test_global_context_agrees_with_the_paper():
    """Written out image by image, head by head and position by position."""
    torch.manual_seed(0)
    context = GlobalContext(16, 4).double()
    nn.init.normal_(context.rescale_weight)
    nn.init.normal_(context.rescale_bias)
    x = torch.randn(2, 16, 3, 5, dtype=torch.double)
    expected = torch.empty_like(x)
    for image, out in zip(x, expected):
        mean = image.mean((1, 2))
        sim = (
            torch.stack(
                [
                    torch.stack(
                        [image[4 * h : 4 * h + 4, i, j] @ mean[4 * h : 4 * h + 4] for i in range(3) for j in range(5)]
                    )
                    for h in range(4)
                ]
            )
            / 2
        )
        sim = (sim - sim.mean()) / (((sim - sim.mean()) ** 2).sum() / (sim.numel() - 1)).sqrt().add(1e-5)
        candidates = context.fc1(mean).view(2, 2)
        vector = context.fc2(torch.maximum(candidates[0], candidates[1]))
        for c in range(16):
            weight = sim[c // 4] * context.rescale_weight[c // 4] + context.rescale_bias[c // 4]
            out[c] = weight.view(3, 5) * vector[c]
    torch.testing.assert_close(context(x), x + expected)


def test_constant_image_has_finite_gradients():
    model = micro().train()
    sum(x.square().sum() for x in model(torch.zeros(2, 3, 32, 32))).backward()
    assert_all_grads(model)


def test_initial_weights():
    model = micro(layer_scale_init_value=1e-5)
    block = model.stages[0].blocks[0]
    mix = block.token_mixer.mixes[0]
    assert torch.equal(block.layer_scale1, torch.full((16,), 1e-5))
    assert mix.dwconv.weight.std().item() == pytest.approx((2 / 121) ** 0.5, rel=0.1)
    assert block.channel_mixer.fc1.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)
    assert mix.global_context.fc1.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(mix.global_context.rescale_weight, torch.ones(8))
    assert all(not bias.any() for name, bias in model.named_parameters() if name.endswith('.bias'))


def test_arch_argument_is_not_modified():
    arch = copy.deepcopy(MICRO)
    micro(arch=arch)
    assert arch == MICRO


def test_layer_depth():
    model = micro(out_indices=(0, 3))
    blocks = sum(MICRO['depths'])
    expected = {
        'backbone.stem.proj.weight': 0,
        'backbone.stages.0.blocks.0.norm1.weight': 1,
        'backbone.stages.2.downsample.proj.weight': 3,
        'backbone.stages.2.blocks.0.norm1.weight': 3,
        'backbone.stages.2.blocks.1.layer_scale1': 4,
        'backbone.stages.3.blocks.0.norm1.weight': 5,
        'backbone.norm0.weight': blocks + 1,
        'head.fc.weight': blocks + 1,
    }
    for name, depth in expected.items():
        assert model.get_layer_depth(name, 'backbone.') == (depth, blocks + 2), name


@pytest.mark.parametrize(
    'options, error, words',
    [
        (dict(arch='b13'), ValueError, ["unknown arch 'b13'", 'b12', 'b24', 'b48', 'tiny']),
        (dict(arch=3), ValueError, ['arch is 3, expected one of']),
        (dict(arch=dict(depths=(1, 1, 1, 1))), ValueError, ['lacks', 'channels', 'mlp_ratios']),
        (dict(arch=dict(MICRO, width=3)), ValueError, ['unknown', 'width']),
        (dict(arch=dict(MICRO, depths=(1, 1))), ValueError, ['depths=(1, 1)', 'expected 4']),
        (dict(arch=dict(MICRO, num_heads=5)), ValueError, ['num_heads=5', 'does not divide', '16']),
        (dict(context_reduction=32), ValueError, ['context_reduction=32', '16 channels']),
        (dict(context_reduction=0), ValueError, ['context_reduction is 0', 'at least 1']),
        (dict(token_mix_reduction=0), ValueError, ['token_mix_reduction is 0', 'at least 1']),
        (dict(kernel_sizes=(11, 4)), ValueError, ['kernel_sizes is (11, 4)', 'odd']),
        (dict(kernel_sizes=()), ValueError, ['kernel_sizes is ()', 'one or two']),
        (dict(drop_path_rate=1.0), ValueError, ['drop_path_rate is 1.0', 'less than 1']),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error) as caught:
        micro(**options)
    for word in words:
        assert word in str(caught.value)


@torch.no_grad()
def test_mixer_adds_the_shortcut_only_in_unmodified_blocks():
    """In an optimized block the channel mixer adds the shortcut, unless it or the drop path is hooked or replaced."""
    torch.manual_seed(0)
    model = fcvit_mm.optimize_for_inference(micro().eval())
    block = model.stages[0].blocks[0]
    x = torch.randn(1, block.norm1.num_channels, 8, 8)
    expected = block(x)
    assert block.mixer_may_add()

    seen = []
    handle = block.channel_mixer.register_forward_hook(lambda *args: seen.append(args[2]))
    assert not block.mixer_may_add()
    torch.testing.assert_close(block(x), expected)
    assert len(seen) == 1
    handle.remove()
    assert block.mixer_may_add()
    for part, other in (
        ('drop_path', nn.Sequential()),
        ('channel_mixer', nn.Sequential(block.channel_mixer)),
        ('norm2', nn.Sequential(block.norm2)),
    ):
        before = getattr(block, part)
        setattr(block, part, other)
        torch.testing.assert_close(block(x), expected)
        assert block.mixer_may_add() == (part == 'norm2')
        setattr(block, part, before)
    block.drop_path.rate = 0.5
    block.drop_path.train()
    assert not block.mixer_may_add()
