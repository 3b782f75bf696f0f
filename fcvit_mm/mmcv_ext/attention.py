"""Multi-scale deformable attention, and the attention masks of PSANet."""

from typing import Tuple

import torch
from torch import Tensor

from .support import recompute


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Compute multi-scale deformable attention (arXiv 2010.04159) with mmcv's PyTorch version.

    Args:
        value (Tensor): Values at the positions of all levels, ``(B, positions, heads, C / heads)``.
        value_spatial_shapes (Tensor): Height and width of each level, ``(levels, 2)``.
        value_level_start_index (Tensor): Not read.
        sampling_locations (Tensor): x, y as fractions of the map, ``(B, queries, heads, levels, points, 2)``.
        attention_weights (Tensor): ``(B, queries, heads, levels, points)``.
        im2col_step (int): Not read.

    Returns:
        Tensor: ``(B, queries, C)``.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    found = recompute(
        lambda x, y, z: ms_deform_attn_forward(x, value_spatial_shapes, value_level_start_index, y, z, im2col_step),
        [value, sampling_locations, attention_weights],
        grad_output,
    )
    for into, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found):
        into.copy_(gradient)


def _psa_places(
    size: Tuple[int, int], mask: Tuple[int, int], psa_type: int, device: torch.device
) -> Tuple[Tensor, ...]:
    """Return which position of which mask goes to which position of the output."""
    (height, width), (rows, columns) = size, mask
    h, w, i, j = torch.meshgrid(
        *(torch.arange(n, device=device) for n in (height, width, rows, columns)), indexing='ij'
    )
    other_h, other_w = h + i - (rows - 1) // 2, w + j - (columns - 1) // 2
    inside = (other_h >= 0) & (other_h < height) & (other_w >= 0) & (other_w < width)
    h, w, i, j, other_h, other_w = (each[inside] for each in (h, w, i, j, other_h, other_w))
    here, there = h * width + w, other_h * width + other_w
    place = (there, h, w) if psa_type == 0 else (here, other_h, other_w)
    return (i * columns + j, h, w, *place)


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Spread PSANet's attention (ECCV 2018) ``(B, h w, H, W)`` over all positions ``(B, H W, H, W)``."""
    channel, h, w, *place = _psa_places((h_feature, w_feature), (h_mask, w_mask), psa_type, input.device)
    output[:, place[0], place[1], place[2]] = input[:, channel, h, w]


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of :func:`psamask_forward` into ``grad_input``."""
    channel, h, w, *place = _psa_places((h_feature, w_feature), (h_mask, w_mask), psa_type, grad_output.device)
    grad_input[:, channel, h, w] = grad_output[:, place[0], place[1], place[2]]
