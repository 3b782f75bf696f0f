"""Global context: a context vector, added to the feature map with weights from a similarity."""

import math
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from . import native, triton
from .checks import autocast_dtype, check_arguments
from .conditions import HALF, is_channels_last, needs_grad
from .dispatch import Implementation, operation
from .native import gradients
from .tracing import is_traced, is_transformed, records_any_size, records_file
from .triton.support import custom_op


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
    if num_heads < 1 or x.shape[1] % num_heads:
        raise ValueError(
            f'add_global_context: num_heads={num_heads} does not divide the {x.shape[1]} channels of x, '
            f'of shape {tuple(x.shape)}'
        )


def _example(x: Tensor) -> Tuple[Any, ...]:
    num_heads = math.gcd(x.shape[1], 2)
    context, weight, bias = (x.new_empty(shape).normal_() for shape in (x.shape[:2], (num_heads,), (num_heads,)))
    return x, channel_means(x), context, num_heads, weight, bias, 1e-5


@operation(_check, _example)
def add_global_context(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tensor:
    """Add the context vector, weighted at each position by its similarity to the image's mean.

    Source: arXiv 2212.12552, section 3.3. Computed in float32 for every dtype of ``x``, because sums over a complete
    image exceed the range of half precision.

    Args:
        x (Tensor): ``(B, C, H, W)``.
        means (Tensor): :func:`channel_means` of ``x``, ``(B, C)``, best in float32. No other values are allowed: an
            implementation may compute the mean of the similarity from them.
        context (Tensor): Context vectors, ``(B, C)``.
        num_heads (int): ``h``; each head weights its own ``C / h`` channels.
        rescale_weight (Tensor): ``(h,)``, times the normalized similarity.
        rescale_bias (Tensor): ``(h,)``, added to it.
        eps (float): Number added to the standard deviation (the unbiased one; 0 for a single value).

    Returns:
        Tensor: ``(B, C, H, W)``, the dtype of ``x``.
    """
    similarity = normalized_similarity(x, means, num_heads, eps)
    similarity = similarity * rescale_weight.view(-1, 1, 1) + rescale_bias.view(-1, 1, 1)
    context = context.unflatten(1, (num_heads, -1))
    return x + (similarity.unsqueeze(2) * context[..., None, None]).flatten(1, 2).to(x.dtype)


def channel_means(x: Tensor) -> Tensor:
    """Return the mean of each channel over the positions, ``(B, C, H, W)`` to ``(B, C)``.

    In float32 (float64 if ``x`` is).
    """
    if needs_grad(x) and not is_traced() and not is_transformed():
        return _ChannelMeans.apply(x)
    return _channel_means(x)


def _channel_means(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=torch.float32 if x.dtype in HALF else x.dtype)


class _ChannelMeans(torch.autograd.Function):
    """Channel means whose gradient is divided and cast once per channel; PyTorch does both at each position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return _channel_means(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        positions = ctx.shape[2] * ctx.shape[3]
        return (grad / positions).to(ctx.dtype)[:, :, None, None].expand(ctx.shape)


def normalized_similarity(x: Tensor, means: Tensor, num_heads: int, eps: float) -> Tensor:
    """Return each position's similarity to the image's mean, normalized over heads and positions together.

    Args:
        x, means, num_heads, eps: Arguments of :func:`add_global_context`.

    Returns:
        Tensor: ``(B, h, H, W)``, float32 (float64 if ``x`` is).
    """
    if x.dtype in HALF:
        x, means = x.float(), means.float()
    heads = x.unflatten(1, (num_heads, -1))
    similarity = (heads * means.unflatten(1, (num_heads, -1))[..., None, None]).sum(2) * heads.shape[2] ** -0.5
    # The unbiased standard deviation; for a single value (one head, one position), where it is undefined, 0.
    correction = 0 if num_heads == 1 and math.prod(similarity.shape[2:]) == 1 else 1
    std = similarity.std((1, 2, 3), correction=correction, keepdim=True)
    return (similarity - similarity.mean((1, 2, 3), keepdim=True)) / (std + eps)


def _matmul_applies(x: Tensor, *others: Any) -> bool:
    tensors = [x, *(other for other in others if isinstance(other, Tensor))]
    # Compilers generate fast code for inference from the reference; only graphs for training need this (see _matmul).
    if is_traced() and (not _REGISTERED or records_file() or records_any_size() or not needs_grad(*tensors)):
        return False
    # Autocast would compute the matrix products in half precision.
    return (
        x.device.type == 'cpu'
        and x.dtype not in HALF
        and all(tensor.dtype == x.dtype for tensor in tensors)
        and is_channels_last(x)
        and x.numel() > 0
        and autocast_dtype(x) is None
    )


def _matmul(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tensor:
    # A registered operator while a compiler records. If the compiler recorded the single steps, it would choose the
    # layout of the similarity that is saved for the backward pass, and the graph would work for one image size only
    # (torch 2.11).
    form = _registered_matmul if is_traced() else _run_matmul
    return form(x, means, context, num_heads, rescale_weight, rescale_bias, eps)


def _positions_first(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _of_heads(num_heads: int, x: Tensor) -> Tensor:
    """Return one row per head, zero outside the head's channels: one matrix product then serves all heads."""
    return torch.eye(num_heads, dtype=x.dtype).repeat_interleave(x.shape[1] // num_heads, 1)


def _run_matmul(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tensor:
    batch, channels, height, width = x.shape
    positions = height * width
    nhwc = _positions_first(x)
    of_head = _of_heads(num_heads, x)
    scaled = means.unsqueeze(1) * of_head * (channels // num_heads) ** -0.5
    similarity = torch.bmm(scaled, nhwc.transpose(1, 2))
    similarity = similarity - similarity.mean((1, 2), keepdim=True)
    std = torch.linalg.vector_norm(similarity, dim=(1, 2), keepdim=True) * max(num_heads * positions - 1, 1) ** -0.5
    similarity = similarity * (rescale_weight.unsqueeze(1) / (std + eps)) + rescale_bias.unsqueeze(1)
    result = torch.baddbmm(nhwc, similarity.transpose(1, 2), context.unsqueeze(1) * of_head)
    return result.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _run_matmul_grad(
    grad: Tensor,
    x: Tensor,
    means: Tensor,
    context: Tensor,
    num_heads: int,
    rescale_weight: Tensor,
    rescale_bias: Tensor,
    eps: float,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, means, context, rescale weight and bias; the similarity is computed again."""
    nhwc, grad = _positions_first(x), _positions_first(grad)
    of_head = _of_heads(num_heads, x)
    scale = (x.shape[1] // num_heads) ** -0.5
    scaled = means.unsqueeze(1) * of_head * scale
    weights, grad_similarity, *grad_rescale = _grad_of_similarity(
        torch.bmm(nhwc, scaled.transpose(1, 2)),
        torch.bmm(grad, (context.unsqueeze(1) * of_head).transpose(1, 2)),
        rescale_weight,
        rescale_bias,
        eps,
    )
    grad_context = (torch.bmm(weights.transpose(1, 2), grad) * of_head).sum(1)
    grad_x = torch.baddbmm(grad, grad_similarity, scaled)
    grad_means = (torch.bmm(grad_similarity.transpose(1, 2), nhwc) * of_head).sum(1) * scale
    return (grad_x.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2), grad_means, grad_context, *grad_rescale)


def _grad_of_similarity(
    similarity: Tensor, grad_weights: Tensor, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights of the context, and the gradients of the similarity, of rescale weight and bias.

    Args:
        similarity (Tensor): ``(B, HW, h)``, as it is before it is normalized.
        grad_weights (Tensor): ``(B, HW, h)``, the gradient of the context's weights.
        rescale_weight, rescale_bias, eps: Arguments of :func:`add_global_context`.
    """
    similarity = similarity - similarity.mean((1, 2), keepdim=True)
    freedom = max(similarity[0].numel() - 1, 1)
    std = torch.linalg.vector_norm(similarity, dim=(1, 2), keepdim=True) * freedom**-0.5
    normalized = similarity / (std + eps)
    grad_normalized = grad_weights * rescale_weight
    # The gradient through the deviation; there is none where all values are equal.
    along = (grad_normalized * normalized).sum((1, 2), keepdim=True) / (std * freedom)
    grad_similarity = grad_normalized - grad_normalized.mean((1, 2), keepdim=True)
    grad_similarity = grad_similarity / (std + eps) - normalized * along.masked_fill(std == 0, 0)
    return (
        normalized * rescale_weight + rescale_bias,
        grad_similarity,
        (grad_weights * normalized).sum((0, 1)),
        grad_weights.sum((0, 1)),
    )


def _fake_matmul(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _fake_matmul_grad(
    grad: Tensor, x: Tensor, means: Tensor, context: Tensor, num_heads: int, weight: Tensor, bias: Tensor, eps: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        _fake_matmul(x),
        means.new_empty(means.shape),
        context.new_empty(context.shape),
        torch.empty_like(weight),
        torch.empty_like(bias),
    )


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    x, means, context, ctx.num_heads, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, means, context, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    x, means, context, weight, bias = ctx.saved_tensors
    grad_x, grad_means, grad_context, *grad_rescale = _registered_matmul_grad(
        grad.contiguous(memory_format=torch.channels_last), x, means, context, ctx.num_heads, weight, bias, ctx.eps
    )
    return (grad_x, grad_means, grad_context, None, *grad_rescale, None)


_registered_matmul_grad = custom_op('context_matmul_grad', _fake_matmul_grad, device='cpu')(_run_matmul_grad)
_registered_matmul = custom_op('context_matmul', _fake_matmul, _backward, _save, device='cpu')(_run_matmul)
_REGISTERED = _registered_matmul is not _run_matmul


def _native_applies(
    x: Tensor, means: Tensor, context: Tensor, num_heads: int, rescale_weight: Tensor, rescale_bias: Tensor, eps: float
) -> bool:
    tensors = (x, means, context, rescale_weight, rescale_bias)
    return (
        native.applies(*tensors)
        and not (is_traced() and needs_grad(*tensors))
        and (x.numel() > 0 or not needs_grad(*tensors))
    )


def _native_gradients(grad: Tensor, needed: Any, args: Sequence[Any]) -> Tuple[Optional[Tensor], ...]:
    x, means, context, num_heads, rescale_weight, rescale_bias, eps = args
    kernels, scale = torch.ops.fcvit_mm_cpu, (x.shape[1] // num_heads) ** -0.5
    weights, grad_similarity, *grad_rescale = _grad_of_similarity(
        kernels.similarities(x, means * scale, num_heads),
        kernels.similarities(grad, context, num_heads),
        rescale_weight,
        rescale_bias,
        eps,
    )
    return (
        kernels.add_weighted(grad, grad_similarity, means * scale),
        kernels.weighted_sums(x, grad_similarity) * scale,
        kernels.weighted_sums(grad, weights),
        None,
        *grad_rescale,
        None,
    )


_native_with_gradients = gradients.differentiable(
    add_global_context.reference, lambda *args: (native.add_global_context(*args),), _native_gradients
)


def _native(x: Tensor, *others: Any) -> Tensor:
    wanted = needs_grad(x, *(other for other in others if isinstance(other, Tensor)))
    return (_native_with_gradients if wanted else native.add_global_context)(x, *others)


add_global_context.implementations = (
    Implementation(
        'triton',
        triton.add_global_context,
        when=triton.applies,
        condition=triton.APPLIES,
        why='4 passes over the map, the reference makes about 14: 4.8 to 7.1 times the speed in bfloat16 on an H100',
        traceable=True,
    ),
    Implementation(
        'native',
        _native,
        when=_native_applies,
        condition=f'{native.APPLIES}; compiled: no gradients needed',
        why='only two passes over the map: 1.8 to 7 times the speed of two matrix products',
        traceable=True,
    ),
    Implementation(
        'matmul',
        _matmul,
        when=_matmul_applies,
        condition='float32 or float64 alone, channels_last on a CPU; not empty; no autocast; compiled: with gradients',
        why='two matrix products, statistics of the similarity alone: a third of the time in stage 1',
        traceable=True,
    ),
)
