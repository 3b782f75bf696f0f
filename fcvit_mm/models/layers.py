"""Layers that the networks share, and the rules by which an operation computes several of them at once."""

import math
from typing import Any, Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from ..deprecation import renamed_in
from ..ops import add_scaled, conv2d, depthwise_conv2d, gelu_, group_norm, native
from ..ops.conditions import needs_grad
from ..ops.conv import im2col_weight, packed_conv2d
from ..ops.dispatch import current_mode
from ..ops.measured import is_untuned
from ..ops.tracing import is_traced, is_transformed
from .caches import CachedWeight
from .modified import has_global_hooks, is_unmodified


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, computed by the fastest implementation for its input.

    Attributes:
        packed (CachedWeight, optional): The weight of a 1x1 or a depth-wise kernel as compiled kernels read it, for
            inference; see :func:`packed_parameters`.
    """

    packed: Optional[CachedWeight] = None

    @property
    def keeps_size(self) -> bool:
        """``True`` for stride 1, no dilation, a square odd kernel, and padding that keeps the size of the map."""
        height, width = self.kernel_size
        return (
            self.stride == self.dilation == (1, 1)
            and height == width
            and height % 2 == 1
            and self.padding == tuple(size // 2 for size in self.kernel_size)
            and self.padding_mode == 'zeros'
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == self.in_channels == self.out_channels > 1 and self.keeps_size:
            return depthwise_conv2d(x, self.weight, self.bias)
        if self.padding_mode != 'zeros':
            return super().forward(x)
        if self.packed is not None and self.bias is not None and self.groups == 1 and self.kernel_size != (1, 1):
            settings = (self.stride, self.padding, self.dilation)
            out = packed_conv2d(x, self.weight, self.bias, *settings, self._pack_for_im2col)
            if out is not None:
                return out
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups, self.dilation)

    def _pack_for_im2col(self) -> Tensor:
        packed: Any = self.packed
        return packed.get(self.weight, lambda weight: native.pack(im2col_weight(weight)))


class Linear(nn.Linear):
    """``nn.Linear`` that uses the compiled kernels for inference where they are faster: on AMD CPUs with AVX-512."""

    def forward(self, x: Tensor) -> Tensor:
        if is_traced() or x.ndim < 2 or x.shape[-1] != self.in_features or x.numel() == 0 or not self.is_faster(x):
            return super().forward(x)
        rows = x.reshape(1, -1, 1, self.in_features).contiguous().permute(0, 3, 1, 2)
        if not may_use_packed(rows, self.in_features, self.weight, self.bias):
            return super().forward(x)
        out = native.pointwise_conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    @staticmethod
    def is_faster(x: Tensor) -> bool:
        """Return whether the compiled kernels are faster than PyTorch: MKL only uses AVX2 on AMD CPUs."""
        return x.device.type == 'cpu' and native.available() and native.instructions() == 'AVX512' and not is_untuned(x)


class GroupNorm1(nn.GroupNorm):
    """GroupNorm with one group: mean and variance over the channels and positions of each image.

    Source: Wu and He, "Group Normalization", arXiv 1803.08494, with one group.

    Args:
        channels (int): ``C``.
        affine (bool): Learn a factor and a bias per channel.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__(1, channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.weight, self.bias, self.eps)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map.

    Args:
        channels (int): ``C``.
        eps (float): Number added to the variance.

    Shape:
        ``(B, C, H, W)`` to the same.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for some images of the batch.

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382. Branches that are kept are divided
    by the probability of being kept, so that the expected value is unchanged.

    Args:
        rate (float): Probability of dropping, in ``[0, 1)``.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        keep = self.keep(x, x.dtype)
        return x if keep is None else x * keep.view(-1, *(1,) * (x.ndim - 1))

    def keep(self, x: Tensor, dtype: torch.dtype) -> Optional[Tensor]:
        """Return the factor of each image's branch, ``(B,)``: 0, or 1 / P(kept). ``None`` if all are 1."""
        if not self.training or self.rate == 0:
            return None
        probability = 1 - self.rate
        return x.new_empty(x.shape[0], dtype=dtype).bernoulli_(probability).div_(probability)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3g}'


def residual(x: Tensor, branch: Tensor, scale: Optional[Tensor], drop_path: nn.Module) -> Tensor:
    """Add a residual branch, times its layer scale and after stochastic depth, to a feature map: all ``(B, C, H, W)``.

    Args:
        x (Tensor): The map.
        branch (Tensor): Output of the branch.
        scale (Tensor, optional): ``(C,)``.
        drop_path (nn.Module): :class:`DropPath`, or a module that replaces it.
    """
    if type(drop_path) is DropPath and is_unmodified(drop_path) and not has_global_hooks():
        # Under autocast the branch may have lower precision than its product with the scale: multiply the product.
        dtype = branch.dtype if scale is None else torch.promote_types(branch.dtype, scale.dtype)
        return add_scaled(x, branch, scale, drop_path.keep(branch, dtype))
    return x + drop_path(branch if scale is None else branch * scale[:, None, None])


def is_pointwise(layer: nn.Module) -> bool:
    """Check whether a layer is a linear layer or an ungrouped 1x1 convolution without padding."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.padding in ((0, 0), 'same', 'valid') and layer.groups == 1
    return isinstance(layer, nn.Linear)


def is_gelu(activation: nn.Module) -> bool:
    """Check whether an activation is the exact GELU, and may be computed without calling it."""
    return type(activation) is nn.GELU and activation.approximate == 'none' and is_unmodified(activation)


def is_inactive(dropout: nn.Module) -> bool:
    """Check whether a dropout or stochastic depth drops nothing and need not be called."""
    drops_nothing = (
        type(dropout) is nn.Identity
        or (type(dropout) is nn.Dropout and not (dropout.training and dropout.p > 0))
        or (type(dropout) is DropPath and not (dropout.training and dropout.rate > 0))
    )
    return drops_nothing and is_unmodified(dropout)


def may_bypass(*layers: nn.Module) -> bool:
    """Check whether these convolutions or linear layers may be computed from their weights, without calling them.

    Not if one is modified (:func:`~fcvit_mm.models.modified.is_unmodified`) or of another class, or if global hooks are
    registered.
    """
    for layer in layers:
        if type(layer) is Conv2d:
            if not layer.keeps_size:
                return False
        elif type(layer) is not nn.Linear:
            return False
        if layer.bias is None or not is_unmodified(layer):
            return False
    return not has_global_hooks()


def may_use_packed(x: Tensor, channels: int, *others: Optional[Tensor]) -> bool:
    """Check whether compiled kernels may compute a map with weights that were packed before.

    Arguments are those of :func:`may_use_kernels`.
    """
    return not is_traced() and may_use_kernels(x, channels, *others)


def may_use_kernels(x: Tensor, channels: int, *others: Optional[Tensor]) -> bool:
    """Check whether compiled kernels may compute a map, in a graph that a compiler records, too.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        channels (int): Expected number of channels.
        others (Tensor, optional): Parameters that the result is computed with.
    """
    return not (
        current_mode() == 'reference'
        or is_transformed()
        or x.ndim != 4
        or x.shape[1] != channels
        or not native.applies(x, *others)
        or needs_grad(x, *others)
    )


def packed_parameters(x: Tensor, fc1: Conv2d, fc2: Conv2d, *others: Optional[Tensor]) -> Optional[Tuple[Any, ...]]:
    """Return packed weights and biases of two 1x1 convolutions, if compiled kernels can compute this map.

    Args:
        x (Tensor): ``(B, C, H, W)``, which ``fc1`` reads.
        fc1 (Conv2d): Layers that :func:`may_bypass` allows.
        fc2 (Conv2d): The same.
        others (Tensor, optional): Further tensors of the computation.

    Returns:
        tuple or None: Weight, bias, weight, bias, the weights of :func:`fcvit_mm.ops.native.pack`; ``None`` if
            ``packed`` is not set in both layers, or another implementation is wanted: while gradients are needed or a
            graph is made, in other dtypes and layouts.
    """
    if fc1.packed is None or fc2.packed is None:
        return None
    if not may_use_packed(x, fc1.in_channels, fc1.weight, fc1.bias, fc2.weight, fc2.bias, *others):
        return None
    return fc1.packed.get(fc1.weight, native.pack), fc1.bias, fc2.packed.get(fc2.weight, native.pack), fc2.bias


def activated(layer: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """Apply the activation to a layer's output; a GELU is computed in place if nothing else reads the output.

    Args:
        layer (nn.Module): Layer that returns ``(B, C, H, W)``, or a linear one that returns ``(B, H, W, C)``.
        activation (nn.Module): Activation of the output.
        x (Tensor): The layer's input.

    Returns:
        Tensor: Activated output, in the shape of the layer's output.
    """
    x = layer(x)
    if not (is_gelu(activation) and may_bypass(layer)):
        return activation(x)
    if isinstance(layer, nn.Linear):
        return gelu_(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return gelu_(x)


def init_weights_(module: nn.Module) -> None:
    """Initialize one layer in place, as the published FCViT code does; for ``Module.apply``.

    Convolutions: normal with standard deviation ``sqrt(2 / (kernel area * out_channels / groups))``, bias 0.
    Linear layers: normal truncated at two, standard deviation 0.02, bias 0. Norms: 1 and 0.
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm)):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameter values in ``module``, frozen ones included (buffers are not parameters)."""
    return sum(parameter.numel() for parameter in module.parameters())


__getattr__ = renamed_in(__name__)
