"""In-place GELU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import check_arguments
from .conditions import is_channels_last, needs_grad
from .dispatch import Implementation, operation


@operation(lambda x: check_arguments('gelu_', x))
def gelu_(x: Tensor) -> Tensor:
    """Apply the exact GELU (Hendrycks and Gimpel, arXiv 1606.08415); ``x`` may be overwritten.

    Args:
        x (Tensor): ``(B, C, H, W)``, not read again by the caller.

    Returns:
        Tensor: The same shape.
    """
    return F.gelu(x)


def _permuted(x: Tensor) -> Tensor:
    view = x.permute(0, 2, 3, 1)
    view = _ContiguousGELU.apply(view) if needs_grad(x) else torch.ops.aten.gelu_(view)
    return view.permute(0, 3, 1, 2)


class _ContiguousGELU(torch.autograd.Function):
    """GELU of a contiguous tensor, with a contiguous gradient: for others PyTorch 2.1 computes wrong values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(grad.contiguous(), *ctx.saved_tensors)


gelu_.implementations = (
    Implementation(
        'native',
        native.gelu_,
        when=lambda x: native.applies(x) and not needs_grad(x),
        condition=f'{native.APPLIES}; no gradients needed',
        why='in place, with a polynomial instead of the error function',
    ),
    Implementation(
        'permuted',
        _permuted,
        when=lambda x: x.device.type == 'cpu' and is_channels_last(x),
        condition='channels_last on a CPU',
        why="only contiguous tensors reach oneDNN's GELU, which takes half the time of PyTorch's own",
    ),
)
