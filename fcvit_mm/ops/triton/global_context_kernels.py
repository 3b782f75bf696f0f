"""The kernels of the global context. Imports Triton: import it only where kernels are launched.

Tiles are ``(positions, heads, channels of a head)``, heads and channels padded to powers of two and masked. Whatever
the map's dtype, everything else is float32.
"""

# mypy: ignore-errors
# Triton compiles these functions, in which types and operators have meanings of its own.
import triton
import triton.language as tl


@triton.jit
def _tile(
    first,
    end,
    image,
    num_positions,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Return offsets and masks: into the map, (P, h, d), and into the similarity, (P, h), with contiguous heads."""
    position = first + tl.arange(0, POSITIONS)
    head = tl.arange(0, BLOCK_HEADS)
    dim = tl.arange(0, BLOCK_DIM)
    channel = head[:, None] * HEAD_DIM + dim[None, :]
    is_channel = (head < NUM_HEADS)[:, None] & (dim < HEAD_DIM)[None, :]
    row_mask = (position < end)[:, None] & (head < NUM_HEADS)[None, :]
    mask = (position < end)[:, None, None] & is_channel[None, :, :]
    start = image.to(tl.int64) * num_positions
    rows = (start + position)[:, None] * NUM_HEADS + head[None, :]
    start = start * (NUM_HEADS * HEAD_DIM)
    offsets = start + position[:, None, None] * (NUM_HEADS * HEAD_DIM) + channel[None, :, :]
    return offsets, mask, rows, row_mask


@triton.jit
def _vector(
    pointer, image, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_DIM: tl.constexpr
):
    """Load an image's row of (B, C) as (h, d)."""
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    dim = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (head < NUM_HEADS) & (dim < HEAD_DIM)
    return tl.load(pointer + image * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM + dim, mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def _store_vector(
    pointer,
    row,
    value,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    dim = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (head < NUM_HEADS) & (dim < HEAD_DIM)
    tl.store(pointer + row * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM + dim, value, mask=mask)


@triton.jit
def _heads(pointer, NUM_HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr):
    head = tl.arange(0, BLOCK_HEADS)
    return tl.load(pointer + head, mask=head < NUM_HEADS, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=['num_positions', 'num_splits', 'per_split'])
def similarity_kernel(
    x_ptr,
    means_ptr,
    similarity_ptr,
    partial_ptr,
    num_positions,
    num_splits,
    per_split,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Compute the similarity (B, N, h) to the mean, and sum (s - m) and (s - m)^2 into partial (B, splits, 2).

    m = |mean|^2 scale / h is the similarity's mean over heads and positions if means are the map's own. Deviations
    from it do not cancel as a sum of squares would; the sum of (s - m) corrects for any other means, and for rounding.
    """
    image, split = tl.program_id(0) // num_splits, tl.program_id(0) % num_splits
    scale: tl.constexpr = HEAD_DIM**-0.5
    mean = _vector(means_ptr, image, NUM_HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_DIM)
    expected = tl.sum(tl.sum(mean * mean, 1), 0) * (scale / NUM_HEADS)
    end = tl.minimum((split + 1) * per_split, num_positions)
    sums = tl.zeros((POSITIONS, BLOCK_HEADS), tl.float32)
    squares = tl.zeros((POSITIONS, BLOCK_HEADS), tl.float32)
    for first in range(split * per_split, end, POSITIONS):
        offsets, mask, rows, row_mask = _tile(
            first, end, image, num_positions, NUM_HEADS, HEAD_DIM, POSITIONS, BLOCK_HEADS, BLOCK_DIM
        )
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        similarity = tl.sum(x * mean[None, :, :], 2) * scale
        tl.store(similarity_ptr + rows, similarity, mask=row_mask)
        deviation = tl.where(row_mask, similarity - expected, 0.0)
        sums += deviation
        squares += deviation * deviation
    partial_ptr += (image * num_splits + split) * 2
    tl.store(partial_ptr, tl.sum(tl.sum(sums, 1), 0))
    tl.store(partial_ptr + 1, tl.sum(tl.sum(squares, 1), 0))


@triton.jit(do_not_specialize=['num_positions', 'num_splits'])
def apply_kernel(
    x_ptr,
    means_ptr,
    context_ptr,
    similarity_ptr,
    partial_ptr,
    rescale_weight_ptr,
    rescale_bias_ptr,
    out_ptr,
    stats_ptr,
    num_positions,
    num_splits,
    eps,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Compute x + normalized, rescaled similarity * context; write the similarity's mean and deviation to stats."""
    num_steps = tl.cdiv(num_positions, POSITIONS)
    image, step = tl.program_id(0) // num_steps, tl.program_id(0) % num_steps
    scale: tl.constexpr = HEAD_DIM**-0.5
    mean = _vector(means_ptr, image, NUM_HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_DIM)
    expected = tl.sum(tl.sum(mean * mean, 1), 0) * (scale / NUM_HEADS)
    split = tl.arange(0, BLOCK_SPLITS)
    partial_ptr += (image * num_splits + split) * 2
    total = tl.sum(tl.load(partial_ptr, mask=split < num_splits, other=0.0), 0)
    squares = tl.sum(tl.load(partial_ptr + 1, mask=split < num_splits, other=0.0), 0)
    count = num_positions * NUM_HEADS
    center = expected + total / count
    # A lone value has no unbiased deviation: it deviates by 0.
    variance = tl.maximum(squares - total * (total / count), 0.0) / tl.maximum(count - 1, 1)
    deviation = tl.sqrt(variance)
    if step == 0:
        tl.store(stats_ptr + image * 2, center)
        tl.store(stats_ptr + image * 2 + 1, deviation)

    offsets, mask, rows, row_mask = _tile(
        step * POSITIONS,
        num_positions,
        image,
        num_positions,
        NUM_HEADS,
        HEAD_DIM,
        POSITIONS,
        BLOCK_HEADS,
        BLOCK_DIM,
    )
    similarity = tl.load(similarity_ptr + rows, mask=row_mask, other=0.0)
    weight = _heads(rescale_weight_ptr, NUM_HEADS, BLOCK_HEADS)
    bias = _heads(rescale_bias_ptr, NUM_HEADS, BLOCK_HEADS)
    similarity = (similarity - center) / (deviation + eps) * weight[None, :] + bias[None, :]
    context = _vector(context_ptr, image, NUM_HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_DIM)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    out = x + similarity[:, :, None] * context[None, :, :]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['num_positions', 'num_splits', 'per_split'])
def grad_similarity_kernel(
    grad_ptr,
    context_ptr,
    similarity_ptr,
    stats_ptr,
    rescale_weight_ptr,
    rescale_bias_ptr,
    grad_similarity_ptr,
    head_sums_ptr,
    grad_context_ptr,
    num_positions,
    num_splits,
    per_split,
    eps,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Run the first half of the backward pass: all that only needs the output's gradient.

    The gradient of the rescaled similarity (B, N, h), and sums over each split: of it and of its product with the
    normalized similarity, per head, into head_sums (B, splits, 2, h); the context's gradient (B, splits, C).
    """
    image, split = tl.program_id(0) // num_splits, tl.program_id(0) % num_splits
    context = _vector(context_ptr, image, NUM_HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_DIM)
    weight = _heads(rescale_weight_ptr, NUM_HEADS, BLOCK_HEADS)
    bias = _heads(rescale_bias_ptr, NUM_HEADS, BLOCK_HEADS)
    center = tl.load(stats_ptr + image * 2)
    factor = 1 / (tl.load(stats_ptr + image * 2 + 1) + eps)
    end = tl.minimum((split + 1) * per_split, num_positions)
    sums = tl.zeros((POSITIONS, BLOCK_HEADS), tl.float32)
    products = tl.zeros((POSITIONS, BLOCK_HEADS), tl.float32)
    grad_context = tl.zeros((POSITIONS, BLOCK_HEADS, BLOCK_DIM), tl.float32)
    for first in range(split * per_split, end, POSITIONS):
        offsets, mask, rows, row_mask = _tile(
            first, end, image, num_positions, NUM_HEADS, HEAD_DIM, POSITIONS, BLOCK_HEADS, BLOCK_DIM
        )
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        normalized = (tl.load(similarity_ptr + rows, mask=row_mask, other=0.0) - center) * factor
        grad_similarity = tl.sum(grad * context[None, :, :], 2)
        tl.store(grad_similarity_ptr + rows, grad_similarity, mask=row_mask)
        sums += grad_similarity  # 0 where masked, as grad is
        products += grad_similarity * normalized
        rescaled = normalized * weight[None, :] + bias[None, :]
        grad_context += grad * rescaled[:, :, None]
    row = image * num_splits + split
    head = tl.arange(0, BLOCK_HEADS)
    head_sums_ptr += row * 2 * NUM_HEADS + head
    tl.store(head_sums_ptr, tl.sum(sums, 0), mask=head < NUM_HEADS)
    tl.store(head_sums_ptr + NUM_HEADS, tl.sum(products, 0), mask=head < NUM_HEADS)
    _store_vector(grad_context_ptr, row, tl.sum(grad_context, 0), NUM_HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_DIM)


@triton.jit(do_not_specialize=['num_positions', 'num_splits', 'per_split'])
def grad_map_kernel(
    grad_ptr,
    x_ptr,
    means_ptr,
    similarity_ptr,
    grad_similarity_ptr,
    stats_ptr,
    head_sums_ptr,
    rescale_weight_ptr,
    grad_x_ptr,
    grad_means_ptr,
    num_positions,
    num_splits,
    per_split,
    eps,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Run the second half: gradients through the normalization of x, and of the means as sums (B, splits, C).

    With z the normalized similarity, v its gradient and s = deviation: the similarity's gradient is
    (v - mean(v)) / (s + eps) - z sum(v z) / (s (count - 1)), the second term 0 where s is.
    head_sums is (B, 2, h) here.
    """
    image, split = tl.program_id(0) // num_splits, tl.program_id(0) % num_splits
    scale: tl.constexpr = HEAD_DIM**-0.5
    mean = _vector(means_ptr, image, NUM_HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_DIM)
    weight = _heads(rescale_weight_ptr, NUM_HEADS, BLOCK_HEADS)
    center = tl.load(stats_ptr + image * 2)
    deviation = tl.load(stats_ptr + image * 2 + 1)
    factor = 1 / (deviation + eps)
    count = num_positions * NUM_HEADS
    head_sums_ptr += image * 2 * NUM_HEADS
    average = tl.sum(_heads(head_sums_ptr, NUM_HEADS, BLOCK_HEADS) * weight, 0) / count
    product = tl.sum(_heads(head_sums_ptr + NUM_HEADS, NUM_HEADS, BLOCK_HEADS) * weight, 0)
    divisor = deviation * tl.maximum(count - 1, 1)
    pull = tl.where(divisor > 0, product / tl.where(divisor > 0, divisor, 1.0), 0.0)
    end = tl.minimum((split + 1) * per_split, num_positions)
    grad_means = tl.zeros((POSITIONS, BLOCK_HEADS, BLOCK_DIM), tl.float32)
    for first in range(split * per_split, end, POSITIONS):
        offsets, mask, rows, row_mask = _tile(
            first, end, image, num_positions, NUM_HEADS, HEAD_DIM, POSITIONS, BLOCK_HEADS, BLOCK_DIM
        )
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        normalized = (tl.load(similarity_ptr + rows, mask=row_mask, other=0.0) - center) * factor
        inner = tl.load(grad_similarity_ptr + rows, mask=row_mask, other=0.0) * weight[None, :]
        inner = ((inner - average) * factor - normalized * pull) * scale
        tl.store(
            grad_x_ptr + offsets,
            (grad + inner[:, :, None] * mean[None, :, :]).to(grad_x_ptr.dtype.element_ty),
            mask=mask,
        )
        grad_means += x * inner[:, :, None]  # 0 where masked, as x is
    row = image * num_splits + split
    _store_vector(grad_means_ptr, row, tl.sum(grad_means, 0), NUM_HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_DIM)
