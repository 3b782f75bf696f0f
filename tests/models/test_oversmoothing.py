"""AttnScale and FeatScale agree with the formulas of the paper."""

import pytest
import torch
import torch.nn.functional as F
from networks import attn_scale_matrix, perturb

from fcvit_mm.models.oversmoothing import (
    METHODS,
    AttnScaleHeadMixing,
    FeatScale,
    attn_scale,
    check_methods,
)


def test_attn_scale_agrees_with_the_explicit_matrix():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.double, requires_grad=True) for _ in range(3))
    lamb = torch.randn(3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 3, 7, 4, dtype=torch.double)
    expected = attn_scale_matrix(q, k, lamb) @ v
    actual = attn_scale(F.scaled_dot_product_attention(q, k, v), v, lamb)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad((actual * weight).sum(), (q, k, v, lamb)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v, lamb)),
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_small_lamb_takes_effect_in_half_precision(dtype):
    attended, values = torch.randn(2, 1, 2, 5, 4).to(dtype)
    lamb = torch.full((2,), 1e-3)
    difference = attn_scale(attended, values, lamb) - attended
    assert difference.dtype == dtype and difference.any()


def test_head_mixing_agrees_with_the_explicit_matrix():
    torch.manual_seed(0)
    mixing = perturb(AttnScaleHeadMixing(3)).double()
    attention = torch.randn(2, 5, 5, 3, dtype=torch.double).softmax(2)
    mixed = F.linear(attention, mixing.weight, mixing.bias)
    torch.testing.assert_close(mixing(attention), 1 / 5 + (mixed - 1 / 5) * (1 + mixing.lamb))
    assert AttnScaleHeadMixing(3).lamb.eq(0).all()


@pytest.mark.parametrize('shape', [(2, 6, 4), (2, 2, 3, 4)], ids=str)
@pytest.mark.parametrize('factor', [1, 2])
def test_feat_scale_agrees_with_the_formula(shape, factor):
    y = torch.randn(shape, dtype=torch.double)
    layer = FeatScale(4, factor).double()
    torch.testing.assert_close(layer(y), y)
    perturb(layer)
    for given, out in zip(y.flatten(1, -2), layer(y).flatten(1, -2)):
        dc = given.mean(0)
        for token, found in zip(given, out):
            torch.testing.assert_close(found, token + factor * (layer.lamb1 * dc + layer.lamb2 * (token - dc)))


def test_methods_are_checked():
    assert check_methods([]) == () and check_methods(list(METHODS)) == METHODS
    with pytest.raises(
        TypeError, match="methods is 'attn_scale', expected a sequence .*an empty one gives the unmodified"
    ):
        check_methods('attn_scale')
    with pytest.raises(ValueError, match="'attnscale' is unknown"):
        check_methods(['attnscale'])
