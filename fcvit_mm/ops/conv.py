"""Convolution."""

from typing import Any, Optional, Tuple, Union

import torch.nn.functional as F
from torch import Tensor

from .checks import check_arguments
from .conditions import LACKS_HALF, in_float32, lacks_half
from .dispatch import Implementation, operation


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> None:
    channels = (x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0) // groups
    check_arguments(
        'conv2d',
        x,
        weight=(weight, (weight.shape[0], channels) + tuple(weight.shape[2:])),
        bias=(bias, tuple(weight.shape[:1])),
    )


def _example(x: Tensor) -> Tuple[Any, ...]:
    channels = x.shape[1]
    return x, x.new_empty(24, channels, 1, 1).normal_(std=channels**-0.5), x.new_empty(24).normal_()


@operation(_check, _example)
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Union[int, Tuple[int, int]] = 1,
    padding: Union[str, int, Tuple[int, int]] = 0,
    groups: int = 1,
    dilation: Union[int, Tuple[int, int]] = 1,
) -> Tensor:
    """Convolution with zero padding.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(D, C / groups, k, k)``.
        bias (Tensor, optional): ``(D,)``.
        stride (int | tuple[int, int]): Steps between windows.
        padding (int | tuple[int, int] | str): Zeros around the map; ``'same'`` or ``'valid'``, as PyTorch's.
        groups (int): Groups of channels that do not see each other.
        dilation (int | tuple[int, int]): Steps between the values that a window reads.

    Returns:
        Tensor: ``(B, D, H', W')``.
    """
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


conv2d.implementations = (
    Implementation(
        'float32',
        in_float32(conv2d),
        when=lacks_half,
        condition=LACKS_HALF,
        why='PyTorch convolves half precision with scalar code there: 1x1 kernels take 6 times as long as in float32',
    ),
)
