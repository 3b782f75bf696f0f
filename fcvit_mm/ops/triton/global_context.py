"""The global context: similarity to the image's mean, normalized, times the context vector, added to the map.

Bound by memory on a GPU. The map is read for its means, for the similarity and for the sum, and written once: 4 passes
where the reference makes about 14, several in float32. The normalization permits fewer passes only if an image stays in
the cache between them, as most do: 128 images of FCViT-B12's first stage take 51 MB in bfloat16, the L2 cache of an
H100 has 50. For 126 images 0.10 ms were measured, twice the time of one read and one write (docs/gpu.md). The backward
pass reads the output's gradient twice and x once, and writes once; the similarity (h values per position) is stored by
the forward pass.
"""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from ...deprecation import renamed_in
from . import support

#: Values that a program holds at once, and most splits of an image's positions (partial sums, added up afterwards).
TILE, MAX_SPLITS = 4096, 128


def add_global_context(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tensor:
    """Compute ``x + similarity * context``, with each position's similarity to the means normalized.

    Normalized over heads and positions together; in float32 whatever the dtype of ``x``. Source: arXiv 2212.12552,
    section 3.3.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32, float16 or bfloat16.
        means (Tensor): ``(B, C)``, means of ``x`` over the positions.
        context (Tensor): The context vector, ``(B, C)``.
        num_heads (int): ``h``; divides ``C``.
        rescale_weight (Tensor): ``(h,)``.
        rescale_bias (Tensor): ``(h,)``.
        eps (float): Number added to the standard deviation (the unbiased one; 0 for a single value).

    Returns:
        Tensor: ``(B, C, H, W)``, in the dtype and memory format of ``x``. It has first derivatives with respect to all
        tensors, ``means`` among them.
    """
    out, _, _ = _add_global_context(
        support.to_channels_last(x), means, context, num_heads, rescale_weight, rescale_bias, eps
    )
    return support.restore_layout(out, x)


def tile(channels: int, num_heads: int) -> Dict[str, int]:
    """Return the tile sizes of a program, as constants of the kernels."""
    block_heads, block_dim = support.next_power_of_2(num_heads), support.next_power_of_2(channels // num_heads)
    return dict(
        NUM_HEADS=num_heads,
        HEAD_DIM=channels // num_heads,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        POSITIONS=max(1, TILE // (block_heads * block_dim)),
    )


def _fake_forward(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = x.shape
    return (
        support.empty_like(x),
        x.new_empty((batch, height * width, num_heads), dtype=torch.float32),
        x.new_empty((batch, 2), dtype=torch.float32),
    )


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, ...]) -> None:
    x, means, context, ctx.num_heads, rescale_weight, rescale_bias, ctx.eps = inputs
    _, similarity, stats = output
    ctx.mark_non_differentiable(similarity, stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, means, context, rescale_weight, rescale_bias, similarity, stats)


def _backward(ctx: Any, grad: Tensor, *_: None) -> Tuple[Optional[Tensor], ...]:
    x, means, context, rescale_weight, rescale_bias, similarity, stats = ctx.saved_tensors
    grads = add_global_context_grad(
        support.to_channels_last(grad),
        x,
        means,
        context,
        rescale_weight,
        rescale_bias,
        similarity,
        stats,
        ctx.num_heads,
        ctx.eps,
    )
    grad_x, grad_means, grad_context, grad_weight, grad_bias = grads
    return (
        grad_x,
        grad_means.to(means.dtype),
        grad_context.to(context.dtype),
        None,
        grad_weight.to(rescale_weight.dtype),
        grad_bias.to(rescale_bias.dtype),
        None,
    )


def run_forward(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the sum; the similarity ``(B, N, h)`` before it is normalized; its mean and deviation ``(B, 2)``."""
    x = support.to_channels_last(x)
    batch, channels, height, width = x.shape
    num_positions = height * width
    out = support.empty_like(x)
    similarity = x.new_empty((batch, num_positions, num_heads), dtype=torch.float32)
    stats = x.new_empty((batch, 2), dtype=torch.float32)
    if x.numel() == 0:
        return out, similarity, stats
    from .global_context_kernels import apply_kernel, similarity_kernel

    sizes = tile(channels, num_heads)
    splits, per_split = support.split_positions(x, sizes['POSITIONS'], MAX_SPLITS)
    partial = x.new_empty((batch, splits, 2), dtype=torch.float32)
    means, context, rescale_weight, rescale_bias = (
        value.contiguous() for value in (means, context, rescale_weight, rescale_bias)
    )
    with support.on_device(x):
        support.launch(
            similarity_kernel,
            (batch * splits,),
            (x, means, similarity, partial, num_positions, splits, per_split),
            **sizes,
        )
        support.launch(
            apply_kernel,
            (batch * -(-num_positions // sizes['POSITIONS']),),
            (
                x,
                means,
                context,
                similarity,
                partial,
                rescale_weight,
                rescale_bias,
                out,
                stats,
                num_positions,
                splits,
                eps,
            ),
            BLOCK_SPLITS=MAX_SPLITS,
            **sizes,
        )
    return out, similarity, stats


_add_global_context = support.custom_op('add_global_context', _fake_forward, _backward, _save)(run_forward)


def _fake_grad(
    grad: Tensor,
    x: Tensor,
    means: Tensor,
    context: Tensor,
    rescale_weight: Tensor,
    rescale_bias: Tensor,
    similarity: Tensor,
    stats: Tensor,
    num_heads: int,
    eps: float,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    vector, head = (x.new_empty(shape, dtype=torch.float32) for shape in (x.shape[:2], (num_heads,)))
    return support.empty_like(x), vector, torch.empty_like(vector), head, torch.empty_like(head)


def run_backward(
    grad: Tensor,
    x: Tensor,
    means: Tensor,
    context: Tensor,
    rescale_weight: Tensor,
    rescale_bias: Tensor,
    similarity: Tensor,
    stats: Tensor,
    num_heads: int,
    eps: float,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of x (in its dtype), means, context ``(B, C)``, rescale weight and bias ``(h,)``.

    All but the first in float32.
    """
    x = support.to_channels_last(x)
    batch, channels, height, width = x.shape
    num_positions = height * width
    grad_x = support.empty_like(x)
    if x.numel() == 0:
        vector, head = (x.new_zeros(shape, dtype=torch.float32) for shape in ((batch, channels), (num_heads,)))
        return grad_x, vector, vector.clone(), head, head.clone()
    from .global_context_kernels import grad_map_kernel, grad_similarity_kernel

    grad = support.to_channels_last(grad)
    means, context, rescale_weight, rescale_bias = (
        value.contiguous() for value in (means, context, rescale_weight, rescale_bias)
    )
    sizes = tile(channels, num_heads)
    splits, per_split = support.split_positions(x, sizes['POSITIONS'], MAX_SPLITS)
    grad_similarity = torch.empty_like(similarity)
    head_sums = x.new_empty((batch, splits, 2, num_heads), dtype=torch.float32)
    grad_context = x.new_empty((batch, splits, channels), dtype=torch.float32)
    grad_means = torch.empty_like(grad_context)
    with support.on_device(x):
        support.launch(
            grad_similarity_kernel,
            (batch * splits,),
            (
                grad,
                context,
                similarity,
                stats,
                rescale_weight,
                rescale_bias,
                grad_similarity,
                head_sums,
                grad_context,
                num_positions,
                splits,
                per_split,
                eps,
            ),
            **sizes,
        )
        head_sums = head_sums.sum(1)
        support.launch(
            grad_map_kernel,
            (batch * splits,),
            (
                grad,
                x,
                means,
                similarity,
                grad_similarity,
                stats,
                head_sums,
                rescale_weight,
                grad_x,
                grad_means,
                num_positions,
                splits,
                per_split,
                eps,
            ),
            **sizes,
        )
    grad_bias, grad_weight = head_sums.sum(0)
    return grad_x, grad_means.sum(1), grad_context.sum(1), grad_weight.clone(), grad_bias.clone()


add_global_context_grad = support.custom_op('add_global_context_grad', _fake_grad)(run_backward)


__getattr__ = renamed_in(__name__)
