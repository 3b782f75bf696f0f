"""AttnScale and FeatScale agree with the formulas of the paper; tables of positions."""

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
    fit_table,
    resample_table,
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


def test_tables_are_resampled_only_to_other_sizes():
    table = torch.randn(1, 17, 3)
    assert resample_table(table, (4, 4), (4, 4)) is table
    constant = torch.ones(1, 17, 3).index_fill(1, torch.tensor([0]), 5)
    resized = resample_table(constant, (4, 4), (3, 7))
    assert resized.shape == (1, 22, 3) and resized[0, 0].eq(5).all()
    torch.testing.assert_close(resized[:, 1:], torch.ones(1, 21, 3))


def test_a_table_is_fitted_to_a_parameter():
    like = torch.zeros(1, 1 + 9, 3)
    assert fit_table(like, like, 1, (3, 3), 'a') is like
    other = torch.randn(1, 17, 4)
    assert fit_table(other, like, 1, (3, 3), 'a') is other, 'the loader reports another width'
    table = torch.randn(1, 17, 3)
    assert torch.equal(fit_table(table, like, 1, (3, 3), 'a'), resample_table(table, (4, 4), (3, 3)))
    with pytest.raises(ValueError, match=r'a of the checkpoint has 15 positions, expected 9, or a square number'):
        fit_table(torch.randn(1, 16, 3), like, 1, (3, 3), 'a')
