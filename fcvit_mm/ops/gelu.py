"""GELU of a map that nothing else reads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import check_arguments
from .conditions import is_nhwc, needs_grad
from .dispatch import operation


@operation(lambda x: check_arguments('gelu_', x))
def gelu_(x: Tensor) -> Tensor:
    """GELU in its exact form (Hendrycks and Gimpel, arXiv 1606.08415); ``x`` may be overwritten.

    Args:
        x (Tensor): ``(B, C, H, W)``, not read again by the caller.

    Returns:
        Tensor: The same shape.
    """
    return F.gelu(x)


gelu_.fast('native', when=lambda x: native.applies(x) and not needs_grad(x))(native.gelu_)


@gelu_.fast('nhwc', when=lambda x: x.device.type == 'cpu' and is_nhwc(x))
def _nhwc(x: Tensor) -> Tensor:
    # Only contiguous tensors reach oneDNN's GELU, which takes half the time of PyTorch's own.
    view = x.permute(0, 2, 3, 1)
    view = _Contiguous.apply(view) if needs_grad(x) else torch.ops.aten.gelu_(view)
    return view.permute(0, 3, 1, 2)


class _Contiguous(torch.autograd.Function):
    """GELU of a contiguous tensor. Its gradient is made contiguous, too: PyTorch 2.1 returns garbage for any other."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(grad.contiguous(), *ctx.saved_tensors)
