"""CARAFE: upsampling by predicted kernels."""

import torch.nn.functional as F
from torch import Tensor

from .support import recompute


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Compute CARAFE (arXiv 1905.02188): ``(B, C, h, w)``, ``(B, G k k, H, W)`` to ``(B, C, H, W)``."""
    batch, channels, height, width = features.shape
    windows = F.unfold(features, kernel_size, padding=kernel_size // 2)
    windows = windows.view(batch, group_size, channels // group_size, kernel_size**2, height, 1, width, 1)
    weights = masks.view(batch, group_size, 1, kernel_size**2, height, scale_factor, width, scale_factor)
    return (windows * weights).sum(3).reshape(batch, channels, height * scale_factor, width * scale_factor)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Write CARAFE's upsampled map into ``output``; shapes are those of ``_carafe``."""
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of :func:`carafe_naive_forward`."""
    found = recompute(lambda x, y: _carafe(x, y, kernel_size, group_size, scale_factor), [features, masks], top_grad)
    bottom_grad.copy_(found[0])
    mask_grad.copy_(found[1])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write CARAFE's map (``_carafe``) into ``output``; ``rfeatures`` keeps the features for the backward pass."""
    rfeatures.resize_(features.shape).copy_(features)
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of :func:`carafe_forward`."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)
