"""Fusing norms and scales into the weights of a layer next to them, for inference."""

from typing import Tuple, Union

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import Conv2d, is_pointwise
from .modified import is_unmodified

#: Layers that can take over a norm or scale next to them.
Weighted = Union[nn.Conv2d, nn.Linear]
#: ``forward`` of the classes that :func:`can_fuse` allows.
_FUSIBLE = {
    Conv2d.forward,
    nn.Conv2d.forward,
    nn.Linear.forward,
    nn.Identity.forward,
    nn.Dropout.forward,
    _BatchNorm.forward,
    nn.SyncBatchNorm.forward,
}


def can_fuse(*modules: nn.Module) -> bool:
    """Check that these modules are unmodified, so that one can be fused into another.

    Layers and norms of classes that override ``forward`` count as modified: adapters (LoRA), quantized layers.
    """
    return all(is_unmodified(module) and type(module).forward in _FUSIBLE for module in modules)


@torch.no_grad()
def fuse_output_(layer: Weighted, scale: Tensor, shift: Tensor) -> None:
    """Fuse a ``scale`` and ``shift`` of the output channels, ``(D,)`` each, into a convolution or linear layer."""
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    _set(layer, layer.weight.double().flatten(1) * scale.double()[:, None], bias)


@torch.no_grad()
def fuse_input_(layer: Weighted, scale: Tensor, shift: Tensor) -> None:
    """Fuse a ``scale`` and ``shift`` of the input channels, ``(C,)`` each, into a 1x1 convolution or linear layer."""
    weight = layer.weight.double().flatten(1)
    bias = weight @ shift.double() + (0 if layer.bias is None else layer.bias.double())
    _set(layer, weight * scale.double(), bias)


def _set(layer: Weighted, weight: Tensor, bias: Tensor) -> None:
    # New parameters: another layer may share the old ones.
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like.dtype).view_as(like), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(like.dtype), requires_grad=False)


@torch.no_grad()
def batch_norm_affine(norm: _BatchNorm) -> Tuple[Tensor, Tensor]:
    """Return factor and bias per channel of a BatchNorm in evaluation mode, ``(C,)`` each, in float64.

    Raises:
        ValueError: It has no running statistics, so that its factors depend on the batch.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f'{norm} has no running statistics (track_running_stats=False): it cannot be fused')
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight.double() * scale
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else norm.bias.double() + shift


def fuse_batch_norm_(layer: Weighted, norm: nn.Module) -> nn.Module:
    """Fuse a BatchNorm (in evaluation mode) into the convolution before it.

    Other norms are not fused, nor if the norm or the convolution is modified: see :func:`can_fuse`.

    Returns:
        nn.Module: The replacement of the norm.
    """
    if not isinstance(norm, _BatchNorm) or not can_fuse(layer, norm):
        return norm
    fuse_output_(layer, *batch_norm_affine(norm))
    return nn.Identity()


def fuse_batch_norm_before_(norm: nn.Module, layer: Weighted) -> nn.Module:
    """Fuse a BatchNorm (in evaluation mode) into the 1x1 convolution or linear layer after it.

    Other norms are not fused, nor if the norm or the layer is modified: see :func:`can_fuse`.

    Returns:
        nn.Module: The replacement of the norm.
    """
    if not (isinstance(norm, _BatchNorm) and can_fuse(layer, norm) and is_pointwise(layer)):
        return norm
    fuse_input_(layer, *batch_norm_affine(norm))
    return nn.Identity()
