"""Masked convolution: the windows of chosen positions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the windows of ``(1, C, H, W)`` around chosen positions into ``col`` ``(C h w, positions)``."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx[None, :] + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx[None, :] + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write columns ``(C, positions)`` to chosen positions of ``(1, C, H, W)``."""
    im[0, :, mask_h_idx, mask_w_idx] = col
