"""The operator of a complete block, against the block's own layers in float64."""

import copy

import pytest
import torch
from operations import counts_flops
from torch.utils.flop_counter import FlopCounterMode

import fcvit_mm
from fcvit_mm.models.fcvit_packed import pack_block
from fcvit_mm.ops import native, use_ops

built = pytest.mark.skipif(not native.available(), reason='no compiled CPU kernels here')


def block(channels=24, heads=2, ratio=3, **options):
    """A block with random parameters, prepared for inference, and the same in float64."""
    torch.manual_seed(0)
    arch = dict(depths=[1] * 4, channels=[channels] * 4, mlp_ratios=[ratio] * 4, num_heads=heads)
    defaults = dict(layer_scale_init_value=0.5, context_reduction=2, token_mix_reduction=2)
    model = fcvit_mm.FCViT(arch, out_indices=0, **{**defaults, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    own = fcvit_mm.optimize_for_inference(model).stages[0].blocks[0]
    return own, model.stages[0].blocks[0].eval().double()


def maps(*shape):
    torch.manual_seed(1)
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def check(own, reference, x):
    with torch.no_grad(), use_ops('reference'):
        want = reference(x.double())
    have = native.fcvit_block(x, *pack_block(own))
    assert have.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(have.double(), want, rtol=0, atol=2e-6 * max(1, want.abs().max().item()))
    return have


@built
@pytest.mark.parametrize(
    'channels, heads, ratio, options',
    [
        (24, 2, 3, {}),
        (64, 8, 8, {}),
        (20, 5, 1, dict(kernel_sizes=(5,))),
        (6, 1, 7, dict(kernel_sizes=(7, 13), layer_scale_init_value=None)),
    ],
)
def test_agrees_with_the_layers(channels, heads, ratio, options):
    """Fewer and more images than threads, channels that do not fill vectors, a single value."""
    own, reference = block(channels, heads, ratio, **options)
    before = torch.get_num_threads()
    try:
        for batch, *size in ((1, 1, 1), (1, 9, 5), (2, 7, 7), (3, 2, 19), (4, 24, 17)):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(check(own, reference, maps(batch, channels, *size)))
            for result in results[1:]:  # channel mixers of small maps alone depend on their number
                torch.testing.assert_close(result, results[0], rtol=0, atol=2e-6 * result.abs().max().item())
    finally:
        torch.set_num_threads(before)
    assert native.fcvit_block(maps(0, channels, 4, 4), *pack_block(own)).shape == (0, channels, 4, 4)


@built
def test_keeps_its_precision_where_the_first_value_is_far_from_the_others():
    own, reference = block()
    x = maps(1, 24, 40, 40)
    x[:, 0, 0, 0] = 1e4
    with torch.no_grad(), use_ops('reference'):
        want = reference(x.double())
    have = native.fcvit_block(x, *pack_block(own))
    far = (..., slice(20, None))  # where that value has an effect by the statistics of the image alone
    torch.testing.assert_close(have[far].double(), want[far], rtol=0, atol=1e-5)


def round_to_bfloat16(layer):
    """Round the weight and the inputs of a convolution to bfloat16."""
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    layer.register_forward_pre_hook(lambda module, args: args[0].bfloat16().to(args[0].dtype))


@built
@pytest.mark.parametrize('channels, hidden', [(24, 72), (64, 512), (20, 20), (6, 42), (9, 27)])
def test_bfloat16_products_round_only_their_inputs(channels, hidden, instructions):
    own, _ = block(channels, 3 if channels == 9 else 2, hidden // channels)
    if not native.multiplies_bfloat16():
        with torch.no_grad():
            own(maps(1, channels, 3, 3))
        packed = pack_block(own, torch.bfloat16)
        with pytest.raises(RuntimeError, match='expand_weight is of BFloat16, expected Float: this processor'):
            native.fcvit_block(maps(1, channels, 3, 3), *packed)
        return
    packed = pack_block(own, torch.bfloat16)
    assert {each.dtype for each in (*packed[2][6:11:2], packed[5][0], packed[5][4])} == {torch.bfloat16}
    reference = copy.deepcopy(own).double()  # with the weights that fusing gave
    mixer = reference.channel_mixer
    mixes = reference.token_mixer.mixes
    for layer in (mixer.fc1, mixer.fc2, *(each for mix in mixes for each in (mix.dwconv, mix.fc1, mix.fc2))):
        round_to_bfloat16(layer)
    before = torch.get_num_threads()
    try:
        for batch, *size in ((1, 1, 1), (1, 9, 5), (3, 2, 19), (4, 24, 17)):
            x = maps(batch, channels, *size)
            with torch.no_grad(), use_ops('reference'):
                want = reference(x.double())
            for threads in (1, 2):
                torch.set_num_threads(threads)
                have = native.fcvit_block(x, *packed)
                # A value between two of bfloat16 is rounded up in one and down in the other now and then.
                error = (have - want).abs() / want.abs().max().clamp(min=1)
                assert error.median() < 3e-4 and error.max() < 5e-3
    finally:
        torch.set_num_threads(before)


@built
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_nan_stays_in_its_image(dtype):
    if dtype == torch.bfloat16 and not native.multiplies_bfloat16():
        pytest.skip('no instructions for bfloat16')
    packed = pack_block(block()[0], dtype)
    x = maps(3, 24, 6, 5)
    want = native.fcvit_block(x, *packed)
    x[1, 3, 2, 2] = float('nan')
    have = native.fcvit_block(x, *packed)
    assert have[1].isnan().all() and torch.equal(have[::2], want[::2])


@built
@counts_flops
def test_flops_are_those_of_the_layers():
    own, reference = block()
    x, packed = maps(2, 24, 6, 5), pack_block(own)
    with FlopCounterMode(display=False) as counter:
        native.fcvit_block(x, *packed)
    with FlopCounterMode(display=False) as expected, use_ops('reference'):
        reference(x.double())
    assert counter.get_total_flops() == expected.get_total_flops()


@built
@pytest.mark.parametrize(
    'change, message',
    [
        ({0: torch.ones(23)}, r'norm_weight is \[23\].*expected \[24\]'),
        ({2: []}, 'mixes has 0 tensors, expected 12 for each'),
        ({3: 5}, 'x has 24 channels, expected a multiple of num_heads=5'),
        ({4: torch.ones(24).double()}, 'scale is .* of Double'),
        ({5: []}, 'channel_mixer has 0 tensors, expected 6'),
        ({(2, 0): torch.ones(24, 24)}, r'context_fc1_weight is \[24, 24\]'),
        ({(2, 4): torch.ones(3)}, r'rescale_weight is \[3\].*expected \[2\]'),
        ({(2, 6): torch.ones(24, 1, 11, 11)}, r'taps is \[24, 1, 11, 11\], expected 3 dimensions'),
        ({(2, 6): torch.ones(2, 9, 16)}, 'a kernel of 3, expected an odd one above 3'),
        ({(2, 8): torch.ones(1, 24, 3)}, r'fc1_weight is \[1, 24, 3\]'),
        ({(5, 1): torch.ones(0)}, 'the channel mixer has no expanded channels'),
        ({(5, 2): torch.ones(72, 1, 3, 3)}, r'mixer_taps is \[72, 1, 3, 3\]'),
        ({(5, 4): torch.ones(1)}, r'reduce_weight is \[1\]'),
    ],
)
def test_refuses_invalid_arguments(change, message):
    args = list(pack_block(block()[0]))
    for place, value in change.items():
        if isinstance(place, tuple):
            args[place[0]] = [value if i == place[1] else each for i, each in enumerate(args[place[0]])]
        else:
            args[place] = value
    with pytest.raises(RuntimeError, match=message):
        native.fcvit_block(maps(2, 24, 4, 4), *args)


@built
def test_weights_of_mixed_dtypes_are_refused():
    if not native.multiplies_bfloat16():
        pytest.skip('no instructions for bfloat16')
    own, _ = block()
    args = list(pack_block(own, torch.bfloat16))
    args[2] = pack_block(own)[2]
    with pytest.raises(RuntimeError, match=r'taps is \[2, 121, 16\], expected 4 dimensions'):
        native.fcvit_block(maps(2, 24, 4, 4), *args)


@built
def test_unknown_instructions_are_refused():
    with pytest.raises(RuntimeError, match='instructions is SSE2, expected AVX2'):
        torch.ops.fcvit_mm_cpu.choose_instructions('SSE2')


@built
def test_weights_packed_for_other_instructions_are_refused(instructions):
    packed = native.pack(torch.ones(8, 8, 1, 1))
    wrong = torch.ones(1, 8, 48 - native.panel_width())
    assert packed.shape == (1, 8, native.panel_width())
    with pytest.raises(RuntimeError, match=rf'fc1_weight is \[1, 8, {wrong.shape[2]}\]'):
        native.bottleneck(maps(1, 8, 2, 2), wrong, torch.ones(8), packed, torch.ones(8))
