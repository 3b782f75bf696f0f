"""Depth-wise convolution that keeps the map's size."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from . import native, triton
from .checks import check_arguments
from .conditions import add_float32_form, needs_grad
from .dispatch import operation


def check_depthwise(name: str, x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> None:
    """Refuse a kernel that is not ``(C, 1, k, k)`` with odd ``k``, and what else does not fit; see checks.py."""
    channels = x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 0
    size = int(weight.shape[-1])
    check_arguments(name, x, weight=(weight, (channels, 1, size, size)), bias=(bias, (channels,)))
    if size % 2 == 0:
        raise ValueError(
            f'{name}: weight has a kernel of {size}x{size}, expected an odd size, which can keep the size of the map'
        )


@operation(lambda *args: check_depthwise('depthwise_conv2d', *args))
def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Each channel convolved with its own kernel; zero padding keeps the map's size.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(C, 1, k, k)``, ``k`` odd.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    return F.conv2d(x, weight, bias, padding=int(weight.shape[-1]) // 2, groups=x.shape[1])


depthwise_conv2d.fast('triton', when=lambda x, *_: triton.applies(x), traceable=True)(triton.depthwise_conv2d)


def _native_pays(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> bool:
    # In training the gradient of the weight is PyTorch's all the same, and takes most of the time.
    smallest = 9 if needs_grad(x, weight, bias) else 3
    return weight.shape[-1] >= smallest and native.applies(x, weight, bias)


depthwise_conv2d.fast('native', when=_native_pays, traceable=True)(native.depthwise_conv2d)
add_float32_form(depthwise_conv2d)
