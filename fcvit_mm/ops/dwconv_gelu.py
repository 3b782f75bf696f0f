"""Depth-wise convolution followed by GELU."""

from typing import Any, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor

from . import native, triton
from .conditions import LACKS_HALF, in_float32, lacks_half, needs_grad
from .depthwise_conv import check_depthwise, depthwise_conv2d
from .dispatch import Implementation, operation
from .gelu import gelu_


def _example(x: Tensor) -> Tuple[Any, ...]:
    channels = x.shape[1]
    return x, x.new_empty(channels, 1, 3, 3).normal_(std=0.3), x.new_empty(channels).normal_()


@operation(lambda *args: check_depthwise('dwconv_gelu', *args), _example)
def dwconv_gelu(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Apply a depth-wise convolution and GELU to a map.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(C, 1, k, k)``, ``k`` odd.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    return F.gelu(F.conv2d(x, weight, bias, padding=int(weight.shape[-1]) // 2, groups=x.shape[1]))


def _composed(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    return gelu_(depthwise_conv2d(x, weight, bias))


dwconv_gelu.implementations = (
    Implementation(
        'triton',
        triton.dwconv_gelu,
        when=triton.applies,
        condition=triton.APPLIES,
        why='one pass over the map, and only the map stored for the backward pass: 2.1 to 3.3 times the speed in '
        'bfloat16 on an H100',
        traceable=True,
    ),
    Implementation(
        'native',
        native.dwconv_gelu,
        when=lambda *args: native.applies(*args) and not needs_grad(*args),
        condition=f'{native.APPLIES}; no gradients needed',
        why='one pass of 0.4 to 0.6 ns per element instead of two of 1.0 ns',
        traceable=True,
    ),
    Implementation(
        'float32',
        in_float32(dwconv_gelu),
        when=lacks_half,
        condition=LACKS_HALF,
        why='PyTorch convolves half precision with scalar code there: up to 70 times the time of float32',
    ),
    Implementation(
        'composed',
        _composed,
        when=lambda x, *_: x.device.type == 'cpu',
        condition='on a CPU',
        why='depthwise_conv2d and gelu_ each run their fastest implementation, GELU in place',
    ),
)
