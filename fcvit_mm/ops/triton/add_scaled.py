"""The scaled residual: a map plus a branch, times a scale per channel, times a factor per image, in one pass.

Bound by memory on a GPU: two maps are read and one is written, where PyTorch moves five to eight.
"""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from . import support

#: Values that a program holds at once.
TILE = 2048


def add_scaled(x: Tensor, branch: Tensor, scale: Optional[Tensor] = None, keep: Optional[Tensor] = None) -> Tensor:
    """Compute ``x + branch * scale * keep``, in float32 before it is rounded.

    Args:
        x (Tensor): ``(B, C, H, W)``, float32, float16 or bfloat16.
        branch (Tensor): The same shape; any of these dtypes.
        scale (Tensor, optional): ``(C,)``.
        keep (Tensor, optional): ``(B,)``.

    Returns:
        Tensor: ``(B, C, H, W)``, in the dtype that PyTorch's arithmetic would give, in the memory format of ``x``. It
        has first derivatives with respect to all but ``keep``.
    """
    out = _add_scaled(support.to_channels_last(x), support.to_channels_last(branch), scale, keep)
    return support.restore_layout(out, x)


def _dtype(x: Tensor, branch: Tensor, scale: Optional[Tensor], keep: Optional[Tensor]) -> torch.dtype:
    dtype = torch.promote_types(x.dtype, branch.dtype)
    for factor in (scale, keep):
        dtype = dtype if factor is None else torch.promote_types(dtype, factor.dtype)
    return dtype


def tile(channels: int) -> Dict[str, int]:
    """Return the tile sizes of a program, as constants of the kernels."""
    block_c = support.next_power_of_2(channels)
    return dict(CHANNELS=channels, BLOCK_C=block_c, ROWS=max(1, TILE // block_c))


def _fake_forward(x: Tensor, branch: Tensor, scale: Optional[Tensor], keep: Optional[Tensor]) -> Tensor:
    return support.empty_like(x, _dtype(x, branch, scale, keep))


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    x, branch, scale, keep = inputs
    ctx.dtype = x.dtype
    # Without a scale nothing is computed from the branch's values.
    ctx.branch_dtype = branch.dtype
    ctx.save_for_backward(None if scale is None else branch, scale, keep)


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    branch, scale, keep = ctx.saved_tensors
    needs_x, needs_branch, needs_scale, _ = ctx.needs_input_grad
    grad_branch = grad_scale = None
    if scale is None and keep is None:
        grad_branch = grad.to(ctx.branch_dtype)
    elif needs_branch or needs_scale:
        grad_branch, grad_scale = add_scaled_grad(grad, branch, scale, keep, ctx.branch_dtype)
        grad_scale = grad_scale.to(scale.dtype) if scale is not None else None
    return grad.to(ctx.dtype) if needs_x else None, grad_branch if needs_branch else None, grad_scale, None


def run_forward(x: Tensor, branch: Tensor, scale: Optional[Tensor], keep: Optional[Tensor]) -> Tensor:
    """Return the sum of maps ``(B, C, H, W)``, with ``scale (C,)`` and ``keep (B,)`` if given."""
    x, branch = support.to_channels_last(x), support.to_channels_last(branch)
    out = _fake_forward(x, branch, scale, keep)
    if x.numel() == 0:
        return out
    from .add_scaled_kernels import add_scaled_kernel

    batch, channels, height, width = x.shape
    sizes = tile(channels)
    num_rows = batch * height * width
    with support.on_device(x):
        support.launch(
            add_scaled_kernel,
            (-(-num_rows // sizes['ROWS']),),
            (
                x,
                branch,
                x if scale is None else scale.contiguous(),
                x if keep is None else keep.contiguous(),
                out,
                num_rows,
                height * width,
            ),
            HAS_SCALE=scale is not None,
            HAS_KEEP=keep is not None,
            **sizes,
        )
    return out


_add_scaled = support.custom_op('add_scaled', _fake_forward, _backward, _save)(run_forward)


def _fake_grad(
    grad: Tensor, branch: Optional[Tensor], scale: Optional[Tensor], keep: Optional[Tensor], dtype: torch.dtype
) -> Tuple[Tensor, Tensor]:
    return support.empty_like(grad, dtype), grad.new_empty(
        grad.shape[1] if scale is not None else 0, dtype=torch.float32
    )


def run_backward(
    grad: Tensor, branch: Optional[Tensor], scale: Optional[Tensor], keep: Optional[Tensor], dtype: torch.dtype
) -> Tuple[Tensor, Tensor]:
    """Return the gradients of the branch, in ``dtype``, and of the scale ``(C,)``, in float32 (empty without one)."""
    grad = support.to_channels_last(grad)
    grad_branch, grad_scale = _fake_grad(grad, branch, scale, keep, dtype)
    if grad.numel() == 0:
        return grad_branch, grad_scale.zero_()
    from .add_scaled_kernels import add_scaled_grad_kernel

    batch, channels, height, width = grad.shape
    sizes = tile(channels)
    num_rows = batch * height * width
    splits = min(8 * support.num_processors(grad.device), -(-num_rows // sizes['ROWS']))
    per_split = -(-num_rows // splits)
    per_split = -(-per_split // sizes['ROWS']) * sizes['ROWS']
    splits = -(-num_rows // per_split)
    partial = grad.new_empty((splits, channels), dtype=torch.float32)
    with support.on_device(grad):
        support.launch(
            add_scaled_grad_kernel,
            (splits,),
            (
                grad,
                grad if branch is None else support.to_channels_last(branch),
                grad if scale is None else scale.contiguous(),
                grad if keep is None else keep.contiguous(),
                grad_branch,
                partial,
                num_rows,
                height * width,
                per_split,
            ),
            HAS_SCALE=scale is not None,
            HAS_KEEP=keep is not None,
            **sizes,
        )
    return grad_branch, partial.sum(0) if scale is not None else grad_scale


add_scaled_grad = support.custom_op('add_scaled_grad', _fake_grad)(run_backward)
