"""The kernels of the scaled residual. Imports Triton: import it only where kernels are launched.

Maps are channels_last, seen as ``(rows, channels)`` with a row for each position of each image; channels are padded to
a power of two and masked.
"""

# mypy: ignore-errors
# Triton compiles these functions, in which types and operators have meanings of its own.
import triton
import triton.language as tl


@triton.jit
def _tile(first, end, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    row = first + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK_C)
    offsets = (row.to(tl.int64) * CHANNELS)[:, None] + channel[None, :]
    mask = (row < end)[:, None]
    if CHANNELS != BLOCK_C:
        mask = mask & (channel < CHANNELS)[None, :]
    return row, offsets, mask


@triton.jit
def _vector(pointer, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    channel = tl.arange(0, BLOCK_C)
    return tl.load(pointer + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=['num_rows', 'num_positions'])
def add_scaled_kernel(
    x_ptr,
    branch_ptr,
    scale_ptr,
    keep_ptr,
    out_ptr,
    num_rows,
    num_positions,
    CHANNELS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute x + branch * scale * keep, with scale (C) and keep (B)."""
    row, offsets, mask = _tile(tl.program_id(0) * ROWS, num_rows, CHANNELS, ROWS, BLOCK_C)
    branch = tl.load(branch_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        branch = branch * _vector(scale_ptr, CHANNELS, BLOCK_C)
    if HAS_KEEP:
        keep = tl.load(keep_ptr + row // num_positions, mask=row < num_rows, other=0.0).to(tl.float32)
        branch = branch * keep[:, None]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, (x + branch).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['num_rows', 'num_positions', 'per_split'])
def add_scaled_grad_kernel(
    grad_ptr,
    branch_ptr,
    scale_ptr,
    keep_ptr,
    grad_branch_ptr,
    partial_ptr,
    num_rows,
    num_positions,
    per_split,
    CHANNELS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the branch's gradient; sum the scale's over each split into partial (splits, C)."""
    first = tl.program_id(0) * per_split
    end = tl.minimum(first + per_split, num_rows)
    sums = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for start in range(first, end, ROWS):
        row, offsets, mask = _tile(start, end, CHANNELS, ROWS, BLOCK_C)
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if HAS_KEEP:
            keep = tl.load(keep_ptr + row // num_positions, mask=row < end, other=0.0).to(tl.float32)
            grad = grad * keep[:, None]
        if HAS_SCALE:
            sums += grad * tl.load(branch_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            grad = grad * _vector(scale_ptr, CHANNELS, BLOCK_C)
        tl.store(grad_branch_ptr + offsets, grad.to(grad_branch_ptr.dtype.element_ty), mask=mask)
    if HAS_SCALE:
        channel = tl.arange(0, BLOCK_C)
        tl.store(partial_ptr + tl.program_id(0) * CHANNELS + channel, tl.sum(sums, 0), mask=channel < CHANNELS)
