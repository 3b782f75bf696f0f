"""The kernels of GroupNorm with one group. Imports Triton: import it only where kernels are launched.

Maps are channels_last: tiles are ``(positions, channels)``, the channels of a position padded to a power of two and
masked. Whatever the map's dtype, arithmetic is in float32.
"""

# mypy: ignore-errors
# Triton compiles these functions, in which types and operators have meanings of its own.
import triton
import triton.language as tl

SIZES = ['num_positions', 'num_splits', 'per_split']


@triton.jit
def _tile(first, end, image, num_positions, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return offsets into the map, and the mask of those that exist."""
    position = first + tl.arange(0, POSITIONS)
    channel = tl.arange(0, BLOCK_C)
    offsets = ((image.to(tl.int64) * num_positions + position) * CHANNELS)[:, None] + channel[None, :]
    mask = (position < end)[:, None]
    if CHANNELS != BLOCK_C:
        mask = mask & (channel < CHANNELS)[None, :]
    return offsets, mask


@triton.jit
def _vector(pointer, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    channel = tl.arange(0, BLOCK_C)
    return tl.load(pointer + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    x_ptr,
    partial_ptr,
    num_positions,
    num_splits,
    per_split,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute each split's mean and sum of squared deviations from it, into partial (B, splits, 2).

    Deviations are summed from the mean of the split's first tile, near enough to the split's own that nothing cancels.
    """
    image, split = tl.program_id(0) // num_splits, tl.program_id(0) % num_splits
    first = split * per_split
    end = tl.minimum(first + per_split, num_positions)
    offsets, mask = _tile(first, end, image, num_positions, CHANNELS, POSITIONS, BLOCK_C)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    pivot = tl.sum(tl.sum(x, 1), 0) / (tl.minimum(end - first, POSITIONS) * CHANNELS)
    sums = tl.zeros((POSITIONS, BLOCK_C), tl.float32)
    squares = tl.zeros((POSITIONS, BLOCK_C), tl.float32)
    for start in range(first, end, POSITIONS):
        offsets, mask = _tile(start, end, image, num_positions, CHANNELS, POSITIONS, BLOCK_C)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        deviation = tl.where(mask, x - pivot, 0.0)
        sums += deviation
        squares += deviation * deviation
    total = tl.sum(tl.sum(sums, 1), 0)
    offset = total / ((end - first) * CHANNELS)
    partial_ptr += (image * num_splits + split) * 2
    tl.store(partial_ptr, pivot + offset)
    tl.store(partial_ptr + 1, tl.sum(tl.sum(squares, 1), 0) - total * offset)


@triton.jit(do_not_specialize=SIZES)
def normalize_kernel(
    x_ptr,
    partial_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    stats_ptr,
    num_positions,
    num_splits,
    per_split,
    eps,
    CHANNELS: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalize the map; write each image's mean and inverse standard deviation into stats (B, 2)."""
    num_steps = tl.cdiv(num_positions, POSITIONS)
    image, step = tl.program_id(0) // num_steps, tl.program_id(0) % num_steps
    split = tl.arange(0, BLOCK_SPLITS)
    partial_ptr += (image * num_splits + split) * 2
    counts = tl.maximum(tl.minimum(per_split, num_positions - split * per_split), 0).to(tl.float32) / num_positions
    means = tl.load(partial_ptr, mask=split < num_splits, other=0.0)
    mean = tl.sum(means * counts, 0)
    between = tl.where(split < num_splits, (means - mean) * (means - mean) * counts, 0.0)
    squares = tl.load(partial_ptr + 1, mask=split < num_splits, other=0.0)
    variance = tl.sum(squares, 0) / num_positions / CHANNELS + tl.sum(between, 0)
    factor = 1 / tl.sqrt(variance + eps)
    if step == 0:
        tl.store(stats_ptr + image * 2, mean)
        tl.store(stats_ptr + image * 2 + 1, factor)

    offsets, mask = _tile(step * POSITIONS, num_positions, image, num_positions, CHANNELS, POSITIONS, BLOCK_C)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) - mean
    if AFFINE:
        weight, bias = _vector(weight_ptr, CHANNELS, BLOCK_C), _vector(bias_ptr, CHANNELS, BLOCK_C)
        x = x * (weight * factor) + bias
    else:
        x = x * factor
    tl.store(out_ptr + offsets, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def grad_sums_kernel(
    grad_ptr,
    x_ptr,
    stats_ptr,
    partial_ptr,
    num_positions,
    num_splits,
    per_split,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum grad, and grad times the normalized map, per channel over each split: partial (B, splits, 2, C)."""
    image, split = tl.program_id(0) // num_splits, tl.program_id(0) % num_splits
    mean, factor = tl.load(stats_ptr + image * 2), tl.load(stats_ptr + image * 2 + 1)
    end = tl.minimum((split + 1) * per_split, num_positions)
    sums = tl.zeros((POSITIONS, BLOCK_C), tl.float32)
    products = tl.zeros((POSITIONS, BLOCK_C), tl.float32)
    for start in range(split * per_split, end, POSITIONS):
        offsets, mask = _tile(start, end, image, num_positions, CHANNELS, POSITIONS, BLOCK_C)
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        sums += grad
        products += grad * ((x - mean) * factor)  # 0 where masked, as grad is
    channel = tl.arange(0, BLOCK_C)
    partial_ptr += (image * num_splits + split) * (2 * CHANNELS) + channel
    tl.store(partial_ptr, tl.sum(sums, 0), mask=channel < CHANNELS)
    tl.store(partial_ptr + CHANNELS, tl.sum(products, 0), mask=channel < CHANNELS)


@triton.jit(do_not_specialize=['num_positions'])
def grad_map_kernel(
    grad_ptr,
    x_ptr,
    stats_ptr,
    sums_ptr,
    weight_ptr,
    grad_x_ptr,
    num_positions,
    CHANNELS: tl.constexpr,
    AFFINE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the map's gradient from the sums of :func:`grad_sums_kernel` over an image, (B, 2, C).

    With z the normalized map and v = grad * weight: (v - mean(v) - z mean(v z)) times the inverse deviation.
    """
    num_steps = tl.cdiv(num_positions, POSITIONS)
    image, step = tl.program_id(0) // num_steps, tl.program_id(0) % num_steps
    mean, factor = tl.load(stats_ptr + image * 2), tl.load(stats_ptr + image * 2 + 1)
    sums_ptr += image * (2 * CHANNELS)
    sums, products = _vector(sums_ptr, CHANNELS, BLOCK_C), _vector(sums_ptr + CHANNELS, CHANNELS, BLOCK_C)
    offsets, mask = _tile(step * POSITIONS, num_positions, image, num_positions, CHANNELS, POSITIONS, BLOCK_C)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    z = (tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) - mean) * factor
    if AFFINE:
        weight = _vector(weight_ptr, CHANNELS, BLOCK_C)
        sums, products, grad = sums * weight, products * weight, grad * weight
    average = tl.sum(tl.sum(sums, 1), 0) / num_positions / CHANNELS
    product = tl.sum(tl.sum(products, 1), 0) / num_positions / CHANNELS
    grad = (grad - average - z * product) * factor
    tl.store(grad_x_ptr + offsets, grad.to(grad_x_ptr.dtype.element_ty), mask=mask)
