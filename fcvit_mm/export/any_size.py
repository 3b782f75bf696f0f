"""Modules that exporters record at a fixed size, replaced by equivalent ones for any size."""

from typing import Any, Tuple, Union

import torch
import torch.nn as nn
from torch import Tensor

from ..models.dwnet import DWMixer


class AdaptiveAvgPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products. ONNX has no operator for it; the image size stays dynamic.

    Args:
        output_size (int | tuple[int]): Height and width of the output.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, *output_size)``.
    """

    def __init__(self, output_size: Union[int, Tuple[int, int]]) -> None:
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weights(x.shape[2], self.output_size[0], x)
        columns = self.weights(x.shape[3], self.output_size[1], x)
        return rows @ x @ columns.transpose(0, 1)

    @staticmethod
    def weights(length: int, bins: int, like: Tensor) -> Tensor:
        """Return the weight of each position in each bin, ``(bins, length)``; bins overlap as PyTorch's do."""
        position = torch.arange(length, device=like.device)
        index = torch.arange(bins, device=like.device)[:, None]
        start = (index * length).div(bins, rounding_mode='floor')
        end = ((index + 1) * length + bins - 1).div(bins, rounding_mode='floor')
        inside = ((position >= start) & (position < end)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


class SameSize(nn.Module):
    """A module that preserves the map size, declared to torch.export.

    torch.export treats the size after pad-and-crop as data-dependent and then fails when two maps must match.

    Args:
        module (nn.Module): ``(B, C, H, W)`` to ``(B, C', H, W)``.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.module(x)
        for wanted, size in zip(x.shape[2:], outputs.shape[2:]):
            if isinstance(size, torch.SymInt):
                torch._check(size == wanted)
        return outputs


#: Modules that pad and crop, and so preserve the size in a way that torch.export does not recognize.
KEEP_SIZE = (DWMixer,)


def replace_fixed_sizes_(module: nn.Module) -> nn.Module:
    """Replace modules that exporters record at a fixed size by equivalent ones for any size.

    Args:
        module (nn.Module): Changed in place.

    Returns:
        nn.Module: The same.
    """
    child: Any
    for name, child in module.named_children():
        if type(child) is nn.AdaptiveAvgPool2d and _is_fixed(child.output_size):
            setattr(module, name, AdaptiveAvgPool2d(child.output_size))  # type: ignore[arg-type]
        elif type(child).__module__ == 'mmseg.models.utils.wrappers' and child.scale_factor:
            # int() in its forward method would record the size as a constant.
            setattr(
                module,
                name,
                nn.Upsample(scale_factor=child.scale_factor, mode=child.mode, align_corners=child.align_corners),
            )
        elif isinstance(child, KEEP_SIZE):
            setattr(module, name, SameSize(child))
        else:
            replace_fixed_sizes_(child)
    return module


def _is_fixed(size: Any) -> bool:
    """Check whether both sides are given (``None`` keeps the input's); a mean, ``(1, 1)``, is known to exporters."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return None not in sides and sides != (1, 1)
