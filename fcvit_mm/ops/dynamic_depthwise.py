"""Depth-wise convolutions whose kernels are computed from their input: one per image, or one per position.

Source: Han et al., "On the Connection between Local Attention and Dynamic Depth-wise Convolution", arXiv 2106.04263,
section 3 (dynamic depth-wise convolution, homogeneous and inhomogeneous).
"""

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import operation, records_any_size


def _check_dynamic(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> None:
    _check_map('dynamic_depthwise_conv2d', x)
    square = weight.ndim == 4 and weight.shape[2] == weight.shape[3] and weight.shape[2] % 2 == 1
    if not square or weight.shape[:2] != x.shape[:2]:
        raise ValueError(
            f'dynamic_depthwise_conv2d got x {tuple(x.shape)} and weight {tuple(weight.shape)}, expected '
            '(B, C, H, W) and (B, C, k, k) with odd k: one kernel for each image and channel'
        )
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ValueError(
            f'dynamic_depthwise_conv2d got x {tuple(x.shape)} and bias {tuple(bias.shape)}, expected '
            f'one value for each of the {x.shape[1]} channels'
        )


def _check_inhomogeneous(x: Tensor, weight: Tensor) -> None:
    _check_map('inhomogeneous_depthwise_conv2d', x)
    fits = weight.ndim == 5 and weight.shape[0] == x.shape[0] and weight.shape[3:] == x.shape[2:]
    if not fits or weight.shape[1] == 0 or x.shape[1] % weight.shape[1]:
        raise ValueError(
            f'inhomogeneous_depthwise_conv2d got x {tuple(x.shape)} and weight {tuple(weight.shape)}, '
            'expected (B, C, H, W) and (B, G, k*k, H, W), with C a multiple of G: one kernel for each '
            'image, channel group and position'
        )
    if _side(weight) ** 2 != weight.shape[2] or weight.shape[2] % 2 == 0:
        raise ValueError(
            f'inhomogeneous_depthwise_conv2d got kernels of {weight.shape[2]} values in weight '
            f'{tuple(weight.shape)}, expected the square of an odd number'
        )
    if weight.dtype != x.dtype or weight.device != x.device:
        raise TypeError(
            f'inhomogeneous_depthwise_conv2d got x of {x.dtype} on {x.device} and weight of '
            f'{weight.dtype} on {weight.device}, expected the same of both'
        )


def _check_map(name: str, x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f'{name} got x {tuple(x.shape)}, expected (B, C, H, W)')


def _side(weight: Tensor) -> int:
    """Side of the kernels of ``weight (B, G, k*k, H, W)``; a number in traces, too, where shapes are tensors."""
    return math.isqrt(int(weight.shape[2]))


@operation(check=_check_dynamic)
def dynamic_depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Convolve each image depth-wise with kernels of its own; zeros stand outside.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(B, C, k, k)``, ``k`` odd.
        bias (Tensor, optional): ``(C,)``, the same for all images.

    Returns:
        Tensor: ``(B, C, H, W)``.

    Raises:
        ValueError: The shapes do not fit together.
    """
    images, channels, height, width = x.shape
    if images == 0:  # a convolution without groups is none
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


def _is_channels_last_batch(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> bool:
    return (
        x.device.type == 'cpu'
        and x.shape[0] > 1
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@dynamic_depthwise_conv2d.fast('image by image', when=_is_channels_last_batch)
def _image_by_image(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Keeps the layout, which one convolution over all images cannot: half the time on CPU, backward included."""
    return torch.cat(
        [
            F.conv2d(image, kernels.unsqueeze(1), bias, padding=weight.shape[2] // 2, groups=x.shape[1])
            for image, kernels in zip(x.split(1), weight)
        ]
    )


def _any_batch(x: Tensor, *others: Optional[Tensor]) -> bool:
    return records_any_size() and not isinstance(x.shape[0], int)


@dynamic_depthwise_conv2d.fast('row by row', when=_any_batch, traceable=True)
def _dynamic_row_by_row(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """For graphs that take any number of images: that of a convolution's groups is a constant in every format."""
    out = _row_by_row(x, weight.flatten(2)[..., None, None])
    return out if bias is None else out + bias[:, None, None]


@operation(check=_check_inhomogeneous)
def inhomogeneous_depthwise_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a kernel of its own at each position, shared by the channels of a group; zeros stand outside.

    Group ``g`` of ``G`` holds the channels ``g * C / G`` to ``(g + 1) * C / G - 1``.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(B, G, k*k, H, W)``, ``k`` odd, rows of a kernel one after the other.

    Returns:
        Tensor: ``(B, C, H, W)``.

    Raises:
        ValueError: The shapes do not fit together.
        TypeError: ``x`` and ``weight`` differ in type or device.
    """
    images, channels, height, width = x.shape
    groups, taps = weight.shape[1:3]
    # k*k copies of the map: that is why there is a form without them.
    side = _side(weight)
    patches = F.unfold(x, side, padding=side // 2).view(images, groups, channels // groups, taps, height, width)
    return torch.einsum('bgcthw,bgthw->bgchw', patches, weight).reshape(x.shape)


class _TapByTap(torch.autograd.Function):
    """Sum over the taps of the kernel, each a shifted view of the map; nothing of ``k*k`` times the map is stored."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        # Plain layout: in the other, the inner loop would run over the few channels of a group.
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        padded = _pad(x, weight)
        out = _zeros(x, (*_grouped(x, weight), *x.shape[2:]))
        for tap, view in enumerate(_views(padded, x, weight)):
            out.addcmul_(view, weight[:, :, tap].to(out.dtype).unsqueeze(2))
        return out.reshape(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        height, width = x.shape[2:]
        padded = _pad(x, weight)
        grad = grad.to(padded.dtype).reshape(*_grouped(x, weight), height, width)
        grad_padded = torch.zeros_like(padded) if needs_x else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_views = _views(grad_padded, x, weight) if needs_x else [None] * weight.shape[2]
        for tap, (view, grad_view) in enumerate(zip(_views(padded, x, weight), grad_views)):
            if needs_weight:
                grad_weight[:, :, tap] = (grad * view).sum(2)
            if needs_x:
                grad_view.addcmul_(grad, weight[:, :, tap].to(grad.dtype).unsqueeze(2))
        if needs_x:
            edge = (padded.shape[2] - height) // 2
            grad_padded = grad_padded[:, :, edge : edge + height, edge : edge + width].to(x.dtype)
        return grad_padded, grad_weight


def _zeros(x: Tensor, shape) -> Tensor:
    """Zeros to add up in: dozens of terms do not fit half precision."""
    return x.new_zeros(shape, dtype=x.dtype if x.dtype == torch.float64 else torch.float32)


def _pad(x: Tensor, weight: Tensor) -> Tensor:
    """The map with zeros around it."""
    edge = _side(weight) // 2
    images, channels, height, width = x.shape
    padded = _zeros(x, (images, channels, height + 2 * edge, width + 2 * edge))
    padded[:, :, edge : edge + height, edge : edge + width] = x
    return padded


def _grouped(x: Tensor, weight: Tensor) -> Tuple[int, int, int]:
    """``(B, G, C / G)``."""
    return x.shape[0], weight.shape[1], x.shape[1] // weight.shape[1]


def _views(padded: Tensor, x: Tensor, weight: Tensor):
    """What each tap of the kernels sees of the padded map: views ``(B, G, C / G, H, W)``."""
    side = _side(weight)
    height, width = x.shape[2:]
    padded = padded.view(*_grouped(x, weight), *padded.shape[2:])
    for row in range(side):
        for column in range(side):
            yield padded[..., row : row + height, column : column + width]


@inhomogeneous_depthwise_conv2d.fast('tap by tap', when=lambda x, weight: True)
def _tap_by_tap(x: Tensor, weight: Tensor) -> Tensor:
    return _TapByTap.apply(x, weight)


@inhomogeneous_depthwise_conv2d.fast('row by row', when=lambda x, weight: records_any_size(), traceable=True)
def _row_by_row(x: Tensor, weight: Tensor) -> Tensor:
    """What :class:`_TapByTap` computes, in few standard operations: ``k`` copies of the map, one shifted for each row
    of the kernel. The kernels may be the same at all positions: ``(B, G, k*k, 1, 1)``."""
    side = _side(weight)
    height, width = x.shape[2:]
    padded = F.pad(x, [side // 2] * 4).unflatten(1, _grouped(x, weight)[1:])
    rows = torch.stack([padded[:, :, :, row : row + height] for row in range(side)], 3)
    weight = weight.unflatten(2, (side, side)).unsqueeze(2)
    columns = [(rows[..., column : column + width] * weight[:, :, :, :, column]).sum(3) for column in range(side)]
    return sum(columns[1:], columns[0]).flatten(1, 2)
