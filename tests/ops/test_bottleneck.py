"""The bottleneck of a token mix; the common tests of all operations are in test_implementations.py."""

import pytest
import torch
from operations import cast, random_call

from fcvit_mm.models.fcvit import TokenMix
from fcvit_mm.ops import bottleneck, channel_mixer, use_ops


def test_is_two_convolutions_with_gelu():
    x = torch.full((1, 2, 1, 1), 0.5)
    first, second = torch.tensor([[1.0, 1.0]])[..., None, None], torch.tensor([[1.0], [-1.0]])[..., None, None]
    output = bottleneck(x, first, torch.zeros(1), second, torch.tensor([0.0, 1.0]))
    gelu = 0.841344746  # of 1; and the second values are GELU of that, and of 1 minus that
    assert output.flatten().tolist() == pytest.approx([gelu * 0.7999213, (1 - gelu) * 0.5630274], rel=1e-4)


def test_token_mix_calls_hooked_and_replaced_layers():
    """Hooks are called and do not change the output; a replaced activation takes effect."""
    torch.manual_seed(0)
    mix = TokenMix(16, 3, 4, None).eval()
    x = torch.randn(2, 16, 5, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with use_ops('reference'):
            expected = mix(x)
        torch.testing.assert_close(mix(x), expected)
        seen = []
        handles = [
            layer.register_forward_hook(lambda module, *_: seen.append(module))
            for layer in (mix.fc1, mix.act1, mix.fc2, mix.act2)
        ]
        torch.testing.assert_close(mix(x), expected)
        assert seen == [mix.fc1, mix.act1, mix.fc2, mix.act2]
        for handle in handles:
            handle.remove()
        mix.act2 = torch.nn.Identity()
        torch.testing.assert_close(torch.nn.functional.gelu(mix(x)), expected)


def test_refuses_invalid_arguments():
    x, *weights = cast(random_call(bottleneck, (2, 4, 4)), torch.float32)
    weights[3] = torch.ones(7)
    with pytest.raises(ValueError, match=r'bottleneck: fc2_bias has the shape \(7,\), but x of shape .* takes \(16,\)'):
        bottleneck(x, *weights)


@pytest.mark.parametrize('op, biases', [(bottleneck, (2, 4)), (channel_mixer, (2, 4, 6))])
def test_biases_may_be_missing(op, biases):
    """As in the convolutions of the reference implementation."""
    args = list(cast(random_call(op, (1, 5, 4)), torch.float32, 'channels_last'))
    for place in biases:
        args[place] = None
    with torch.no_grad():
        torch.testing.assert_close(op(*args), op.reference(*args), rtol=1e-4, atol=1e-5)
