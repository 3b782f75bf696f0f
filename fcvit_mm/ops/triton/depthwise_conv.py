"""Depth-wise convolution: forward, gradient of the input, gradient of the weight.

Bound by arithmetic on a GPU: 11x11 in bfloat16 moves 4 bytes per element and multiplies 121 times in float32 on the
ordinary (not the matrix) units. For the 128 x 64 x 56 x 56 map of FCViT-B12's first stage, an H100 at 33 T
multiply-adds/s needs at least 0.09 ms for arithmetic and 0.03 ms for memory; 0.21 ms were measured for 126 images
(docs/gpu.md). About 60% of the instructions in the inner loop multiply; the loads read 0.8 bytes per multiplication,
where loading an element and a weight for each would read 6. The gradient of the weight reads x and the gradient once
for each group of kernel rows, mostly from the L2 cache, and sums in two steps without atomics: the same input gives the
same bits on the same GPU.
"""

import math
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from . import support


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the depth-wise convolution, stride 1, same padding, with sums in float32.

    Under autocast the result is in the autocast dtype.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32, float16 or bfloat16.
        weight (Tensor): ``(C, 1, k, k)``, k odd; any of these dtypes.
        bias (Tensor, optional): ``(C,)``.

    Returns:
        Tensor: ``(B, C, H, W)``, in the dtype and memory format of ``x``. It has first derivatives.
    """
    return support.restore_layout(_depthwise_conv2d(support.to_channels_last(support.autocast(x)), weight, bias), x)


def taps_of(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert the weight ``(C, 1, k, k)`` to ``(k * k, C)`` in a dtype, with contiguous channels.

    A copy, unless the weight has the dtype and is stored so: see :func:`pack_taps`.
    """
    return weight.detach().flatten(1).t().to(dtype).contiguous()


def pack_taps(weight: Tensor) -> Tensor:
    """Return the weight ``(C, 1, k, k)`` in the memory order of :func:`taps_of`, so that calls need not copy it."""
    channels, _, height, width = weight.shape
    return taps_of(weight, weight.dtype).t().view(channels, 1, height, width)


def tile(kernel_size: int, channels: int, batch: int, height: int, width: int, processors: int) -> Dict[str, int]:
    """Return the tile sizes of a program, as constants of the kernels, and its number of warps.

    Enough outputs to reuse each load, few enough to stay in registers; fewer where there would otherwise be fewer
    programs than processors.

    Args:
        kernel_size (int): ``k``.
        channels, batch, height, width (int): Dimensions of the map.
        processors (int): Streaming multiprocessors.
    """
    # 7 and 14 divide the widths of a 224-pixel image's maps; up to 6% more columns than the map has do not matter.
    candidates = ((2, 4),) if kernel_size <= 5 else ((1, 14), (2, 7))
    padded = {cols: -(-width // cols) * cols for _, cols in candidates}
    rows, cols = next(each for each in candidates if padded[each[1]] <= 1.06 * min(padded.values()))
    if support.INTERPRETED:
        cols = 2 if kernel_size <= 5 else 3  # the interpreter takes as long for one lane as for all
    block_c = min(64, support.next_power_of_2(channels))
    # Only two sizes, because each takes seconds to compile.
    positions, warps = 512 // block_c, 4
    programs = -(-batch * -(-width // cols) // positions) * -(-height // rows) * -(-channels // block_c)
    if programs < 2 * processors:
        positions, warps = 1, 1
    return dict(ROWS=rows, COLS=cols, POSITIONS=positions, BLOCK_C=block_c, num_warps=warps)


def tile_grad_weight(kernel_size: int, channels: int) -> Dict[str, int]:
    """Return tile sizes and warps for the gradient of the weight, with ``TAP_ROWS * kernel_size`` sums per channel."""
    block_c = min(64, support.next_power_of_2(channels))
    return dict(TAP_ROWS=3, COLS=7 if kernel_size > 5 else 4, POSITIONS=256 // block_c, BLOCK_C=block_c, num_warps=4)


def run_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    flip: bool = False,
    epilogue: str = 'none',
    grad: Optional[Tensor] = None,
) -> Tensor:
    """Launch ``depthwise_kernel`` on a map ``(B, C, H, W)``, with weight ``(C, 1, k, k)`` and bias ``(C,)``."""
    x = support.to_channels_last(x)
    out = support.empty_like(x)
    if x.numel() == 0:
        return out
    from .depthwise_conv_kernels import depthwise_kernel

    (batch, channels, height, width), kernel_size = x.shape, weight.shape[-1]
    sizes = tile(kernel_size, channels, batch, height, width, support.num_processors(x.device))
    places_wide, row_blocks = -(-width // sizes['COLS']), -(-height // sizes['ROWS'])
    num_places = batch * places_wide
    grid = (-(-num_places // sizes['POSITIONS']) * row_blocks, -(-channels // sizes['BLOCK_C']))
    unit = math.gcd(channels, 64)
    # In the map's dtype, as autocast casts them; and a kernel for each pair of dtypes would take longer to compile.
    taps, bias = taps_of(weight, x.dtype), None if bias is None else bias.to(x.dtype).contiguous()
    with support.on_device(x):
        support.launch(
            depthwise_kernel,
            grid,
            (
                x,
                taps,
                taps if bias is None else bias,
                x if grad is None else support.to_channels_last(grad),
                out,
                num_places,
                height,
                width,
                places_wide,
                row_blocks,
                channels // unit,
            ),
            CHANNELS=channels if kernel_size > 5 else 0,
            UNIT=unit,
            KERNEL=kernel_size,
            FLIP=flip,
            HAS_BIAS=bias is not None,
            EPILOGUE=epilogue,
            **sizes,
        )
    return out


def _fake_forward(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return support.empty_like(x)


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    x, weight = ctx.saved_tensors
    return backward_of_convolution(ctx, grad, x, weight)


def backward_of_convolution(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> Tuple[Optional[Tensor], ...]:
    """Return the gradients of x ``(B, C, H, W)``, weight ``(C, 1, k, k)`` and bias ``(C,)``; None if not needed."""
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    grad_x = depthwise_conv2d_grad_input(grad, weight) if needs_x else None
    grad_weight = grad_bias = None
    if needs_weight or needs_bias:
        grad_weight, grad_bias = depthwise_conv2d_grad_weight(grad, x, weight.shape[-1])
        grad_weight = grad_weight.to(weight.dtype)
        grad_bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias


@support.custom_op('depthwise_conv2d', _fake_forward, _backward, _save)
def _depthwise_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return run_depthwise(x, weight, bias)


@support.custom_op('depthwise_conv2d_grad_input', lambda grad, weight: support.empty_like(grad))
def depthwise_conv2d_grad_input(grad: Tensor, weight: Tensor) -> Tensor:
    """Compute the input's gradient ``(B, C, H, W)``: the output's gradient, convolved with the flipped weight."""
    return run_depthwise(grad, weight, None, flip=True)


def _fake_grad_weight(grad: Tensor, x: Tensor, kernel_size: int) -> Tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return (
        x.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32),
        x.new_empty((channels,), dtype=torch.float32),
    )


def run_grad_weight(grad: Tensor, x: Tensor, kernel_size: int) -> Tuple[Tensor, Tensor]:
    """Compute the gradients of the weight ``(C, 1, k, k)`` and the bias ``(C,)``, in float32."""
    batch, channels, height, width = x.shape
    taps = kernel_size * kernel_size
    if x.numel() == 0:
        return x.new_zeros((channels, 1, kernel_size, kernel_size), dtype=torch.float32), x.new_zeros(
            (channels,), dtype=torch.float32
        )
    from .depthwise_conv_kernels import depthwise_grad_weight_kernel

    x = support.to_channels_last(x)
    sizes, unit = tile_grad_weight(kernel_size, channels), math.gcd(channels, 64)
    places_wide = -(-width // sizes['COLS'])
    num_places = batch * height * places_wide
    blocks, groups = -(-channels // sizes['BLOCK_C']), -(-kernel_size // sizes['TAP_ROWS'])
    # About four programs for each processor, each over a run of places.
    splits = max(1, 4 * support.num_processors(x.device) // (blocks * groups))
    per_split = -(-num_places // splits)
    per_split = -(-per_split // sizes['POSITIONS']) * sizes['POSITIONS']
    splits = -(-num_places // per_split)
    partial = x.new_empty((splits, taps + 1, channels), dtype=torch.float32)
    with support.on_device(x):
        support.launch(
            depthwise_grad_weight_kernel,
            (blocks, groups, splits),
            (
                support.to_channels_last(grad),
                x,
                partial,
                num_places,
                height,
                width,
                places_wide,
                per_split,
                channels // unit,
            ),
            UNIT=unit,
            KERNEL=kernel_size,
            **sizes,
        )
    sums = partial.sum(0)
    grad_weight = x.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    grad_weight.view(channels, taps).copy_(sums[:taps].t())
    return grad_weight, sums[taps].clone()


depthwise_conv2d_grad_weight = support.custom_op('depthwise_conv2d_grad_weight', _fake_grad_weight)(run_grad_weight)
