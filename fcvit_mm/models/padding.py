"""Padding maps to multiples of a window or a dilation, and computing dilated operations by undilated ones."""

import torch.nn.functional as F
from torch import Tensor

from ..ops.tracing import records_any_size


def up_to_multiple(side: int, divisor: int) -> int:
    """Return the next multiple of ``divisor``.

    In this notation exporters recognize the result as a multiple. It avoids ``//`` of negative numbers, because ONNX's
    division rounds towards zero.
    """
    return (side + divisor - 1) // divisor * divisor


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Pad ``(B, C, H, W)`` with zeros, right and bottom, until both sides are multiples of ``divisor``."""
    height, width = x.shape[2:]
    down, right = up_to_multiple(height, divisor) - height, up_to_multiple(width, divisor) - width
    return F.pad(x, (0, right, 0, down)) if records_any_size() or down or right else x


def space_to_batch(x: Tensor, dilation: int) -> Tensor:
    """Return each set of positions ``dilation`` apart as an image, in which a dilated operation is undilated.

    Args:
        x (Tensor): ``(B, C, H, W)``, sides multiples of ``dilation``.
        dilation (int): ``d``.

    Returns:
        Tensor: ``(B * d * d, C, H / d, W / d)``.
    """
    if dilation == 1:
        return x
    x = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))
    return x.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def batch_to_space(x: Tensor, dilation: int) -> Tensor:
    """Undo :func:`space_to_batch`."""
    if dilation == 1:
        return x
    x = x.unflatten(0, (-1, dilation, dilation)).permute(0, 3, 4, 1, 5, 2)
    return x.flatten(4, 5).flatten(2, 3)
