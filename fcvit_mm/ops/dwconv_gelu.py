"""Depth-wise convolution followed by GELU."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from . import native, triton
from .conditions import add_float32_form, needs_grad
from .depthwise_conv import check_depthwise, depthwise_conv2d
from .dispatch import operation
from .gelu import gelu_


@operation(lambda *args: check_depthwise('dwconv_gelu', *args))
def dwconv_gelu(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """GELU of the depth-wise convolution of a map.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(C, 1, k, k)``, ``k`` odd.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    return F.gelu(F.conv2d(x, weight, bias, padding=int(weight.shape[-1]) // 2, groups=x.shape[1]))


dwconv_gelu.fast('triton', when=lambda x, *_: triton.applies(x), traceable=True)(triton.dwconv_gelu)
dwconv_gelu.fast('native', when=lambda *args: native.applies(*args) and not needs_grad(*args), traceable=True)(
    native.dwconv_gelu
)
add_float32_form(dwconv_gelu)


@dwconv_gelu.fast('cpu', when=lambda x, *_: x.device.type == 'cpu')
def _cpu(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    return gelu_(depthwise_conv2d(x, weight, bias))
