"""timm's blocks with the methods in them: windows, masks, attention in slices, and the matrices that analyses read."""

import pytest
import torch
from networks import NETWORKS, attn_scale_matrix, build, images, perturb, randomize_norms

pytest.importorskip('timm')
from fcvit_mm.models import timm_blocks
from fcvit_mm.models.timm_blocks import AttnScaleSelfAttention, AttnScaleWindowAttention, TalkingHeads, shift_mask


@pytest.mark.parametrize('masked', [False, True])
def test_window_attention_agrees_with_the_explicit_matrix(masked):
    torch.manual_seed(0)
    layer = perturb(AttnScaleWindowAttention(8, 2, 3, ('attn_scale',))).double()
    x = torch.randn(8, 9, 8, dtype=torch.double)
    mask = shift_mask((6, 6), (3, 3), (1, 1), x) if masked else None
    q, k, v = layer.qkv(x).view(8, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    bias = layer._get_rel_pos_bias()
    if masked:
        bias = bias + mask.repeat(2, 1, 1)[:, None]
    expected = layer.proj((attn_scale_matrix(q, k, layer.lamb, bias) @ v).transpose(1, 2).reshape(8, 9, 8))
    torch.testing.assert_close(layer(x, mask), expected)


@torch.no_grad()
@pytest.mark.parametrize('make', [lambda: AttnScaleSelfAttention(8, 2, ('attn_scale',)), lambda: TalkingHeads(8, 2)])
def test_attention_matrix_is_the_one_applied(make):
    torch.manual_seed(0)
    layer = perturb(make()).eval()
    x = torch.randn(2, 9, 8)
    values = layer.qkv(x).view(2, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)[2]
    expected = layer.proj((layer.attention_matrix(x) @ values).transpose(1, 2).reshape(2, 9, 8))
    torch.testing.assert_close(layer(x), expected)


def test_shift_mask_separates_wrapped_rows():
    size, window, shift = (6, 9), (3, 3), (1, 0)
    mask = shift_mask(size, window, shift, torch.zeros(1))
    rows = torch.arange(6).roll(-1)[:, None].expand(6, 9)  # where each row of the rolled map was
    windows = rows.reshape(2, 3, 3, 3).transpose(1, 2).reshape(6, 9)
    far = (windows[:, :, None] - windows[:, None]).abs() > 2
    assert torch.equal(mask, torch.zeros(6, 9, 9).masked_fill(far, -100.0))


@torch.no_grad()
def test_shifted_windows_do_not_mix_opposite_edges():
    """On a map that is no multiple of the window, the rows that the roll moves to the other edge are masked."""
    model = perturb(build(NETWORKS['swin'], methods=(), out_indices=0)).eval()
    x = torch.randn(1, 3, 72, 40)  # a map of 18x10, padded to 21x14
    changed = x.clone()
    changed[..., :4, :] += 1  # the first row of patches, which the roll brings next to the last
    a, b = model(x)[0], model(changed)[0]
    assert not torch.allclose(a[..., :4, :], b[..., :4, :], atol=1e-3)
    torch.testing.assert_close(a[..., 14:, :], b[..., 14:, :], rtol=1e-4, atol=1e-5)


def test_sliced_attention_agrees(monkeypatch):
    """CaiT computes the complete attention matrix only if gradients are needed."""
    model, x = randomize_norms(build(NETWORKS['cait'])), images(40, 72)
    expected = [output.detach() for output in model(x)]
    for limit in (1, 1000):
        monkeypatch.setattr(timm_blocks, 'SLICE_BYTES', limit)
        with torch.no_grad():
            for found, other in zip(model(x), expected):
                torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4 * max(1, other.abs().max().item()))
