"""Depth-wise convolution that keeps the map's size."""

from typing import Any, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor

from . import native, triton
from .checks import check_arguments
from .conditions import LACKS_HALF, in_float32, lacks_half, needs_grad
from .dispatch import Implementation, operation


def check_depthwise(name: str, x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> None:
    """Check that the kernels are ``(C, 1, k, k)`` with odd ``k``, and that the arguments match."""
    channels = x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0
    size = int(weight.shape[-1])
    check_arguments(name, x, weight=(weight, (channels, 1, size, size)), bias=(bias, (channels,)))
    check_odd(name, size)


def check_odd(name: str, size: int) -> None:
    """Check that a kernel size is odd, so that padding can preserve the size of the feature map."""
    if size % 2 == 0:
        raise ValueError(
            f'{name}: weight has a kernel of {size}x{size}, expected an odd size, which keeps the size of the map'
        )


def _example(x: Tensor) -> Tuple[Any, ...]:
    channels = x.shape[1]
    return x, x.new_empty(channels, 1, 11, 11).normal_(std=0.1), x.new_empty(channels).normal_()


@operation(lambda *args: check_depthwise('depthwise_conv2d', *args), _example)
def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Convolve each channel with its own kernel; zero padding keeps the size of the map.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(C, 1, k, k)``, ``k`` odd.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    return F.conv2d(x, weight, bias, padding=int(weight.shape[-1]) // 2, groups=x.shape[1])


def _native_applies(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> bool:
    smallest = 5 if needs_grad(x, weight, bias) else 3
    return weight.shape[-1] >= smallest and native.applies(x, weight, bias)


depthwise_conv2d.implementations = (
    Implementation(
        'triton',
        triton.depthwise_conv2d,
        when=triton.applies,
        condition=triton.APPLIES,
        why='each load serves several outputs: 4.6 to 8.6 times the speed of cuDNN for 11x11 kernels in bfloat16 on '
        'an H100',
        traceable=True,
    ),
    Implementation(
        'native',
        native.depthwise_conv2d,
        when=_native_applies,
        condition=f'{native.APPLIES}; kernels of 3x3 or larger, 5x5 or larger if gradients are needed',
        why="11x11 in half of oneDNN's time, 3x3 in 0.8 of it; with gradients 2 to 6 times its speed, 3x3 no faster",
        traceable=True,
    ),
    Implementation(
        'float32',
        in_float32(depthwise_conv2d),
        when=lacks_half,
        condition=LACKS_HALF,
        why='PyTorch convolves half precision with scalar code there: up to 70 times the time of float32',
    ),
)
