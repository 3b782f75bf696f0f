"""Depth-wise convolutions whose kernels are computed from their input: one per image, or one per position.

Source: Han et al., "On the Connection between Local Attention and Dynamic Depth-wise Convolution", arXiv 2106.04263,
section 3 (dynamic depth-wise convolution, homogeneous and inhomogeneous).
"""

import math
from typing import Any, Iterator, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import tracing
from .checks import check_arguments
from .conditions import is_channels_last
from .depthwise_conv import check_odd
from .dispatch import Implementation, operation
from .native.gradients import reference_gradients


def _check_dynamic(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> None:
    name = 'dynamic_depthwise_conv2d'
    images, channels = tuple(x.shape[:2]) if isinstance(x, Tensor) and x.ndim == 4 else (0, 0)
    size = int(weight.shape[-1])
    check_arguments(name, x, weight=(weight, (images, channels, size, size)), bias=(bias, (channels,)))
    check_odd(name, size)


def _check_inhomogeneous(x: Tensor, weight: Tensor) -> None:
    name = 'inhomogeneous_depthwise_conv2d'
    groups, taps = weight.shape[1:3] if weight.ndim == 5 else (0, 0)
    group_dims = (groups, taps) if weight.ndim == 5 else ('G', 'k*k')
    map_shape = tuple(x.shape) if isinstance(x, Tensor) and x.ndim == 4 else (0,) * 4
    check_arguments(name, x, weight=(weight, (map_shape[0], *group_dims, *map_shape[2:])))
    if groups == 0 or map_shape[1] % groups:
        raise ValueError(
            f'{name}: weight has {groups} groups in its shape {tuple(weight.shape)}, (B, G, k*k, H, W), which do not '
            f'divide the {map_shape[1]} channels of x, of shape {map_shape}'
        )
    if _side(weight) ** 2 != taps or taps % 2 == 0:
        raise ValueError(
            f'{name}: weight has kernels of {taps} elements in its shape {tuple(weight.shape)}, expected the square '
            'of an odd number'
        )


def _side(weight: Tensor) -> int:
    """Return the side of the kernels of ``weight (B, G, k*k, H, W)``.

    An int even in traces, where shapes are tensors.
    """
    return math.isqrt(int(weight.shape[2]))


def _dynamic_example(x: Tensor) -> Tuple[Any, ...]:
    images, channels = x.shape[:2]
    return x, x.new_empty(images, channels, 7, 7).normal_(std=0.15), x.new_empty(channels).normal_()


@operation(_check_dynamic, _dynamic_example)
def dynamic_depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Convolve each image depth-wise with kernels of its own; zero padding keeps the map's size.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(B, C, k, k)``, ``k`` odd.
        bias (Tensor, optional): ``(C,)``, the same for all images.

    Returns:
        Tensor: ``(B, C, H, W)``.

    Raises:
        ValueError: The shapes do not fit together.
        TypeError: ``x`` and ``weight`` differ in dtype.
    """
    images, channels, height, width = x.shape
    if images == 0:  # a convolution needs at least one group
        out = x * weight[:, :, :1, :1]
        return out if bias is None else out + bias[:, None, None]
    # Every channel of every image is a group of one convolution. (int: shapes are tensors in traces.)
    out = F.conv2d(
        x.reshape(1, images * channels, height, width),
        weight.flatten(0, 1).unsqueeze(1),
        None if bias is None else bias.repeat(images),
        padding=int(weight.shape[2]) // 2,
        groups=int(images * channels),
    )
    return out.view(images, channels, height, width)


def _is_channels_last_batch(x: Tensor, *_: Any) -> bool:
    return x.device.type == 'cpu' and x.shape[0] > 1 and not x.is_contiguous() and is_channels_last(x)


def _image_by_image(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    return torch.cat(
        [
            F.conv2d(image, kernels.unsqueeze(1), bias, padding=weight.shape[2] // 2, groups=x.shape[1])
            for image, kernels in zip(x.split(1), weight)
        ]
    )


def _dynamic_row_by_row(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    out = _row_by_row(x, weight.flatten(2)[..., None, None])
    return out if bias is None else out + bias[:, None, None]


dynamic_depthwise_conv2d.implementations = (
    Implementation(
        'image_by_image',
        _image_by_image,
        when=_is_channels_last_batch,
        condition='more than one image, channels_last and not contiguous, on a CPU',
        why='keeps the layout, which one convolution over all images cannot: half the time, backward pass included',
    ),
    Implementation(
        'row_by_row',
        _dynamic_row_by_row,
        when=lambda x, *_: tracing.records_variable(x.shape[0]),
        condition='graph recorded for any batch size',
        why='needed for correctness: the number of groups of a convolution is a constant in every file format',
        traceable=True,
    ),
)


def _inhomogeneous_example(x: Tensor) -> Tuple[Any, ...]:
    images, channels, height, width = x.shape
    return x, x.new_empty(images, math.gcd(channels, 4), 49, height, width).normal_(std=0.15)


@operation(_check_inhomogeneous, _inhomogeneous_example)
def inhomogeneous_depthwise_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a kernel of its own at each position, shared by the channels of a group; zero padding.

    Group ``g`` of ``G`` holds the channels ``g * C / G`` to ``(g + 1) * C / G - 1``.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(B, G, k*k, H, W)``, ``k`` odd, rows of a kernel one after the other.

    Returns:
        Tensor: ``(B, C, H, W)``.

    Raises:
        ValueError: The shapes do not fit together, or the devices differ.
        TypeError: ``x`` and ``weight`` differ in dtype.
    """
    images, channels, height, width = x.shape
    groups, taps = weight.shape[1:3]
    # This makes k*k copies of the map; the other implementations avoid them.
    side = _side(weight)
    patches = F.unfold(x, side, padding=side // 2).view(images, groups, channels // groups, taps, height, width)
    return torch.einsum('bgcthw,bgthw->bgchw', patches, weight).reshape(x.shape)


class _TapByTap(torch.autograd.Function):
    """Sum over the kernel elements, each times a shifted view of the map, without storing copies of the map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        padded = _pad(x, weight)
        out = _zeros(x, (*_grouped(x, weight), *x.shape[2:]))
        for tap, view in enumerate(_views(padded, x, weight)):
            out.addcmul_(view, weight[:, :, tap].to(out.dtype).unsqueeze(2))
        return out.reshape(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # for higher derivatives
            return reference_gradients(_row_by_row, (x, weight), ctx.needs_input_grad, grad)
        needs_x, needs_weight = ctx.needs_input_grad
        height, width = x.shape[2:]
        padded = _pad(x, weight)
        grad = grad.to(padded.dtype).reshape(*_grouped(x, weight), height, width)
        grad_x = grad_weight = None
        if needs_weight:
            grad_weight = torch.empty_like(weight)
            for tap, view in enumerate(_views(padded, x, weight)):
                grad_weight[:, :, tap] = (grad * view).sum(2)
        if needs_x:
            grad_padded = torch.zeros_like(padded)
            for tap, view in enumerate(_views(grad_padded, x, weight)):
                view.addcmul_(grad, weight[:, :, tap].to(grad.dtype).unsqueeze(2))
            edge = (padded.shape[2] - height) // 2
            grad_x = grad_padded[:, :, edge : edge + height, edge : edge + width].to(x.dtype)
        return grad_x, grad_weight


def _zeros(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return zeros to accumulate in: float32 for half precision, in which dozens of terms lose too much precision."""
    return x.new_zeros(shape, dtype=x.dtype if x.dtype == torch.float64 else torch.float32)


def _pad(x: Tensor, weight: Tensor) -> Tensor:
    """Return the map with zeros around it."""
    edge = _side(weight) // 2
    images, channels, height, width = x.shape
    padded = _zeros(x, (images, channels, height + 2 * edge, width + 2 * edge))
    padded[:, :, edge : edge + height, edge : edge + width] = x
    return padded


def _grouped(x: Tensor, weight: Tensor) -> Tuple[int, int, int]:
    """Return ``(B, G, C / G)``."""
    return x.shape[0], weight.shape[1], x.shape[1] // weight.shape[1]


def _views(padded: Tensor, x: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """Yield, for each kernel position, its view ``(B, G, C / G, H, W)`` of the padded map."""
    side = _side(weight)
    height, width = x.shape[2:]
    padded = padded.view(*_grouped(x, weight), *padded.shape[2:])
    for row in range(side):
        for column in range(side):
            yield padded[..., row : row + height, column : column + width]


def _tap_by_tap(x: Tensor, weight: Tensor) -> Tensor:
    # Contiguous: in channels_last, the inner loop would run over the few channels of a group.
    return _TapByTap.apply(x.contiguous(), weight.contiguous())


def _row_by_row(x: Tensor, weight: Tensor) -> Tensor:
    """Compute the same as :class:`_TapByTap` in few standard operations.

    ``k`` copies of the map, one shifted for each row of the kernel. The kernels may be the same at all positions:
    ``(B, G, k*k, 1, 1)``.
    """
    side = _side(weight)
    height, width = x.shape[2:]
    padded = F.pad(x, [side // 2] * 4).unflatten(1, _grouped(x, weight)[1:])
    rows = torch.stack([padded[:, :, :, row : row + height] for row in range(side)], 3)
    weight = weight.unflatten(2, (side, side)).unsqueeze(2)
    columns = [(rows[..., column : column + width] * weight[:, :, :, :, column]).sum(3) for column in range(side)]
    return sum(columns[1:], columns[0]).flatten(1, 2)


inhomogeneous_depthwise_conv2d.implementations = (
    Implementation(
        'tap_by_tap',
        _tap_by_tap,
        when=lambda *_: True,
        condition='always',
        why='stores the map once, where the reference stores k*k copies of it',
    ),
    Implementation(
        'row_by_row',
        _row_by_row,
        when=lambda *_: tracing.records_any_size(),
        condition='graph recorded for any image size',
        why='only standard operations, supported by every format; k copies of the map instead of k*k',
        traceable=True,
    ),
)
