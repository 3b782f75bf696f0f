"""The global context, weighed by similarity and added to the map."""

import math
from typing import Any, Tuple

import torch
from torch import Tensor

from . import triton
from .checks import autocast_dtype, check_arguments
from .conditions import HALF, is_channels_last
from .dispatch import Implementation, operation


def _check(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> None:
    vectors = tuple(x.shape[:2]) if isinstance(x, Tensor) else ()
    check_arguments(
        'add_global_context',
        x,
        any_dtype=True,
        means=(means, vectors),
        context=(context, vectors),
        rescale_weight=(rescale_weight, (num_heads,)),
        rescale_bias=(rescale_bias, (num_heads,)),
    )
    if x.shape[1] % num_heads:
        raise ValueError(
            f'add_global_context: num_heads={num_heads} does not divide the {x.shape[1]} channels of x, '
            f'of shape {tuple(x.shape)}'
        )


def _example(x: Tensor) -> Tuple[Any, ...]:
    num_heads = math.gcd(x.shape[1], 4)
    context, weight, bias = (x.new_empty(shape).normal_() for shape in (x.shape[:2], (num_heads,), (num_heads,)))
    return x, channel_means(x), context, num_heads, weight, bias, 1e-5


@operation(_check, _example)
def add_global_context(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tensor:
    """Add the context vector, weighed at each position by that position's similarity to the image's mean.

    Source: arXiv 2212.12552, section 3.3. In float32 whatever ``x`` is: the sums over a complete image do not fit half
    precision.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        means (Tensor): :func:`channel_means` of ``x``, ``(B, C)``; best in float32.
        context (Tensor): Context vectors, ``(B, C)``.
        num_heads (int): ``h``; each head weighs its own ``C / h`` channels.
        rescale_weight (Tensor): ``(h,)``, times the normalised similarity.
        rescale_bias (Tensor): ``(h,)``, added to it.
        eps (float): Added to the standard deviation (the unbiased one; 0 for a lone value).

    Returns:
        Tensor: ``(B, C, H, W)``, the dtype of ``x``.
    """
    similarity = normalised_similarity(x, means, num_heads, eps)
    similarity = similarity * rescale_weight.view(-1, 1, 1) + rescale_bias.view(-1, 1, 1)
    context = context.unflatten(1, (num_heads, -1))
    return x + (similarity.unsqueeze(2) * context[..., None, None]).flatten(1, 2).to(x.dtype)


def channel_means(x: Tensor) -> Tensor:
    """Return the mean of each channel over the positions, ``(B, C, H, W)`` to ``(B, C)``.

    In float32 (float64 if ``x`` is).
    """
    return x.mean((2, 3), dtype=torch.float32 if x.dtype in HALF else x.dtype)


def normalised_similarity(x: Tensor, means: Tensor, num_heads: int, eps: float) -> Tensor:
    """Return each position's similarity to the image's mean, normalised over heads and positions together.

    Args:
        x, means, num_heads, eps: As of :func:`add_global_context`.

    Returns:
        Tensor: ``(B, h, H, W)``, float32 (float64 if ``x`` is).
    """
    if x.dtype in HALF:
        x, means = x.float(), means.float()
    heads = x.unflatten(1, (num_heads, -1))
    similarity = (heads * means.unflatten(1, (num_heads, -1))[..., None, None]).sum(2) * heads.shape[2] ** -0.5
    # The deviation is the unbiased one; a lone value (one head, one position) has none and counts as 0.
    correction = 0 if num_heads == 1 and math.prod(similarity.shape[2:]) == 1 else 1
    std = similarity.std((1, 2, 3), correction=correction, keepdim=True)
    return (similarity - similarity.mean((1, 2, 3), keepdim=True)) / (std + eps)


def _matmul_pays(x: Tensor, *_: Any) -> bool:
    # Autocast would take the matrix products to half precision.
    return (
        x.device.type == 'cpu'
        and x.dtype not in HALF
        and is_channels_last(x)
        and x.numel() > 0
        and autocast_dtype(x) is None
    )


def _matmul(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tensor:
    batch, channels, height, width = x.shape
    positions = height * width
    nhwc = x.permute(0, 2, 3, 1).reshape(batch, positions, channels)
    # One row per head, zero outside the head's channels: one matrix product then serves all heads.
    of_head = torch.eye(num_heads, dtype=x.dtype).repeat_interleave(channels // num_heads, 1)
    scaled = means.unsqueeze(1) * of_head * (channels // num_heads) ** -0.5
    similarity = torch.bmm(scaled, nhwc.transpose(1, 2))
    # Its mean over positions is that of the reference with the image's mean in place of x: no pass over the map.
    mean = (scaled * means.unsqueeze(1)).sum((1, 2), keepdim=True) / num_heads
    similarity = similarity - mean
    std = torch.linalg.vector_norm(similarity, dim=(1, 2), keepdim=True) * max(num_heads * positions - 1, 1) ** -0.5
    similarity = similarity * (rescale_weight.unsqueeze(1) / (std + eps)) + rescale_bias.unsqueeze(1)
    result = torch.baddbmm(nhwc, similarity.transpose(1, 2), context.unsqueeze(1) * of_head)
    return result.view(batch, height, width, channels).permute(0, 3, 1, 2)


add_global_context.implementations = (
    Implementation(
        'triton',
        triton.add_global_context,
        when=triton.applies,
        condition=triton.APPLIES,
        why='4 passes over the map where the reference makes about 14 (not yet measured)',
        traceable=True,
    ),
    Implementation(
        'matmul',
        _matmul,
        when=_matmul_pays,
        condition='float32 or float64, channels_last on a CPU; not empty; no autocast',
        why='two matrix products, statistics without a pass over the map: a third of the time in stage 1',
    ),
)
