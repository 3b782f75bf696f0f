"""GroupNorm with one group, in two passes: partial statistics of each image, then its normalization.

Bound by memory on a GPU. PyTorch (2.11) has no kernel for channels_last: it copies the map to NCHW, gives one
program to each image's statistics, and returns NCHW, so that what follows copies again.
"""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from ..checks import autocast_dtype
from . import support

#: Values that a program holds at once, and most splits of an image's positions (partial sums, added up afterwards).
TILE, MAX_SPLITS = 4096, 64


def group_norm(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float) -> Tensor:
    """Normalize each image by the mean and variance over its channels and positions, in float32 whatever the dtype.

    Under autocast the result is float32, as PyTorch's.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32, float16 or bfloat16.
        weight, bias (Tensor, optional): ``(C,)``, of any of these dtypes; both or neither.
        eps (float): Number added to the variance.

    Returns:
        Tensor: ``(B, C, H, W)``, in the dtype and memory format of ``x``. It has first derivatives.
    """
    dtype = None if autocast_dtype(x) is None else torch.float32
    out, _ = _group_norm(support.to_channels_last(x), weight, bias, eps, dtype)
    return support.restore_layout(out, x)


def tile(channels: int) -> Dict[str, int]:
    """Return the tile sizes of a program, as constants of the kernels."""
    block_c = support.next_power_of_2(channels)
    return dict(CHANNELS=channels, BLOCK_C=block_c, POSITIONS=max(1, TILE // block_c))


def _fake_forward(
    x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float, dtype: Optional[torch.dtype]
) -> Tuple[Tensor, Tensor]:
    return support.empty_like(x, dtype), x.new_empty((len(x), 2), dtype=torch.float32)


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, ...]) -> None:
    x, weight, _, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def _backward(ctx: Any, grad: Tensor, _: None) -> Tuple[Optional[Tensor], ...]:
    x, weight, stats = ctx.saved_tensors
    grad_x, sums = group_norm_grad(grad, x, weight, stats, ctx.needs_input_grad[0])
    grad_weight = grad_bias = None
    if weight is not None and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        grad_bias, grad_weight = sums.sum(0).to(weight.dtype)
    return grad_x if ctx.needs_input_grad[0] else None, grad_weight, grad_bias, None, None


def run_forward(
    x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float, dtype: Optional[torch.dtype]
) -> Tuple[Tensor, Tensor]:
    """Return the normalized map, and the mean and inverse deviation of each image ``(B, 2)`` in float32."""
    x = support.to_channels_last(x)
    batch, channels, height, width = x.shape
    num_positions = height * width
    out, stats = _fake_forward(x, weight, bias, eps, dtype)
    if x.numel() == 0:
        return out, stats
    from .group_norm_kernels import normalize_kernel, statistics_kernel

    sizes = tile(channels)
    splits, per_split = support.split_positions(x, sizes['POSITIONS'], MAX_SPLITS)
    partial = x.new_empty((batch, splits, 2), dtype=torch.float32)
    with support.on_device(x):
        support.launch(statistics_kernel, (batch * splits,), (x, partial, num_positions, splits, per_split), **sizes)
        support.launch(
            normalize_kernel,
            (batch * -(-num_positions // sizes['POSITIONS']),),
            (
                x,
                partial,
                x if weight is None else weight.contiguous(),
                x if bias is None else bias.contiguous(),
                out,
                stats,
                num_positions,
                splits,
                per_split,
                eps,
            ),
            AFFINE=weight is not None,
            BLOCK_SPLITS=MAX_SPLITS,
            **sizes,
        )
    return out, stats


_group_norm = support.custom_op('group_norm', _fake_forward, _backward, _save)(run_forward)


def _fake_grad(
    grad: Tensor, x: Tensor, weight: Optional[Tensor], stats: Tensor, needs_map: bool
) -> Tuple[Tensor, Tensor]:
    grad_x = support.empty_like(x) if needs_map else x.new_empty(0)
    return grad_x, x.new_empty((len(x), 2, x.shape[1]), dtype=torch.float32)


def run_backward(
    grad: Tensor, x: Tensor, weight: Optional[Tensor], stats: Tensor, needs_map: bool
) -> Tuple[Tensor, Tensor]:
    """Return the gradient of the map (empty unless needed), and sums per image and channel ``(B, 2, C)``.

    The sums, in float32: of the output's gradient, and of its product with the normalized map.
    """
    x, grad = support.to_channels_last(x), support.to_channels_last(grad)
    batch, channels, height, width = x.shape
    num_positions = height * width
    grad_x, sums = _fake_grad(grad, x, weight, stats, needs_map)
    if x.numel() == 0:
        return grad_x, sums.zero_()
    from .group_norm_kernels import grad_map_kernel, grad_sums_kernel

    sizes = tile(channels)
    splits, per_split = support.split_positions(x, sizes['POSITIONS'], MAX_SPLITS)
    partial = x.new_empty((batch, splits, 2, channels), dtype=torch.float32)
    with support.on_device(x):
        support.launch(
            grad_sums_kernel,
            (batch * splits,),
            (grad, x, stats, partial, num_positions, splits, per_split),
            **sizes,
        )
        sums = partial.sum(1)
        if needs_map:
            support.launch(
                grad_map_kernel,
                (batch * -(-num_positions // sizes['POSITIONS']),),
                (
                    grad,
                    x,
                    stats,
                    sums,
                    x if weight is None else weight.contiguous(),
                    grad_x,
                    num_positions,
                ),
                AFFINE=weight is not None,
                **sizes,
            )
    return grad_x, sums


group_norm_grad = support.custom_op('group_norm_grad', _fake_grad)(run_backward)
