"""Convolution."""

from typing import Optional, Tuple, Union

import torch.nn.functional as F
from torch import Tensor

from .checks import check_arguments
from .conditions import add_float32_form
from .dispatch import operation


def _check(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, stride=1, padding=0, groups: int = 1) -> None:
    channels = (x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0) // groups
    check_arguments(
        'conv2d',
        x,
        weight=(weight, (weight.shape[0], channels) + tuple(weight.shape[2:])),
        bias=(bias, weight.shape[:1]),
    )


@operation(_check)
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Union[int, Tuple[int, int]] = 1,
    padding: Union[int, Tuple[int, int]] = 0,
    groups: int = 1,
) -> Tensor:
    """Convolution with zero padding.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(D, C / groups, k, k)``.
        bias (Tensor, optional): ``(D,)``.
        stride (int | tuple[int, int]): Steps between windows.
        padding (int | tuple[int, int]): Zeros around the map.
        groups (int): Groups of channels that do not see each other.

    Returns:
        Tensor: ``(B, D, H', W')``.
    """
    return F.conv2d(x, weight, bias, stride, padding, 1, groups)


add_float32_form(conv2d)
