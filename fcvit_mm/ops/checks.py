"""Checks of arguments: an error names both arguments that do not match."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> Optional[torch.dtype]:
    """Return the dtype that autocast gives to convolutions on the device of ``x``; None where it is off."""
    if x.device.type == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def check_arguments(
    name: str, x: Tensor, any_dtype: bool = False, **others: Tuple[Optional[Tensor], Tuple[Any, ...]]
) -> None:
    """Check that a map and the other tensors of a call match in shape, dtype and device.

    Args:
        name (str): The operation, for the message.
        x (Tensor): The map ``(B, C, H, W)``.
        any_dtype (bool): Whether the others may differ from ``x`` in dtype.
        **others: Pairs ``(tensor, expected shape)`` by name of the argument; a pair with ``None`` as tensor is skipped.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or another has another dtype and no autocast casts them.
        ValueError: ``x`` has not four dimensions, or another has another shape or device.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'{name}: x is {got}, expected a floating-point tensor (B, C, H, W)')
    if x.ndim != 4:
        raise ValueError(f'{name}: x has the shape {tuple(x.shape)}, expected four dimensions (B, C, H, W)')
    for label, (tensor, shape) in others.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(shape):
            expected = str(tuple(shape)).replace("'", '')
            raise ValueError(
                f'{name}: {label} has the shape {tuple(tensor.shape)}, but x of shape {tuple(x.shape)} takes {expected}'
            )
        if tensor.device != x.device:
            raise ValueError(
                f'{name}: {label} is on {tensor.device}, but x is on {x.device}: move one of them with .to(device)'
            )
        if tensor.dtype != x.dtype and not any_dtype and autocast_dtype(x) is None:
            raise TypeError(
                f'{name}: {label} is {tensor.dtype}, but x is {x.dtype}: convert one of them with '
                '.to(dtype), or run under torch.autocast'
            )
