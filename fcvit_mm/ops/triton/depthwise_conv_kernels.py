"""The kernels of the depth-wise convolutions. Imports Triton: import it only where kernels are launched.

A program computes ``ROWS x COLS`` neighbouring outputs for each of ``POSITIONS`` places and ``BLOCK_C`` channels, in as
many accumulators: a loaded value serves every output whose window holds it, and a weight ``COLS`` outputs. Places lie
``COLS`` columns apart, so lanes go over the channels: the loads are full lines where the channels are the fastest
dimension (channels_last), and correct but slower where they are not.
"""

# mypy: ignore-errors
# Triton compiles these functions, in which types and operators have meanings of its own.
import triton
import triton.language as tl

SIZES = ['num_places', 'height', 'width', 'places_high', 'places_wide']


@triton.jit
def _replaced(items, index: tl.constexpr, value):
    return items[:index] + (value,) + items[index + 1 :]


@triton.jit
def _zeros(count: tl.constexpr, rows: tl.constexpr, cols: tl.constexpr):
    items = ()
    for _ in tl.static_range(count):
        items = items + (tl.zeros((rows, cols), tl.float32),)
    return items


@triton.jit
def _strides(height, width, channels, CHANNELS_LAST: tl.constexpr):
    if CHANNELS_LAST:
        return 1, width * channels, channels
    else:
        return height * width, width, 1


@triton.jit
def _place(place, height, width, channels, places_high, places_wide, ROWS: tl.constexpr, COLS: tl.constexpr):
    """First row and column of a place, and where its image starts (a batch may hold more than 2^31 values)."""
    image_row = place // places_wide
    image = (image_row // places_high).to(tl.int64)
    return image_row % places_high * ROWS, place % places_wide * COLS, image * height * width * channels


@triton.jit
def _normal(v):
    """Distribution and density (without its factor) of the normal distribution, from one exponential.

    The error function by Abramowitz and Stegun, 7.1.26: to 1.5e-7, at a third of the instructions of CUDA's own,
    which would take longer than the memory here.
    """
    density = tl.exp(-0.5 * v * v)
    t = 1 / (1 + 0.3275911 * 0.7071067811865476 * tl.abs(v))
    poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail = 0.5 * poly * density
    return tl.where(v < 0, tail, 1 - tail), density


@triton.jit
def _gelu(v):
    distribution, _ = _normal(v)
    return v * distribution


@triton.jit
def _gelu_slope(v):
    distribution, density = _normal(v)
    return distribution + v * density * 0.3989422804014327


@triton.jit(do_not_specialize=SIZES)
def depthwise_kernel(
    x_ptr,
    taps_ptr,
    bias_ptr,
    grad_ptr,
    out_ptr,
    num_places,
    height,
    width,
    channels,
    places_high,
    places_wide,
    KERNEL: tl.constexpr,
    FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Depth-wise convolution of x with taps (KERNEL * KERNEL, channels), flipped or not, then the epilogue.

    The epilogues: ``none``; ``gelu``; ``gelu_grad``, the product of grad and GELU's slope at the convolution's output.
    """
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    place = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    is_place = place < num_places
    row, col, start = _place(place, height, width, channels, places_high, places_wide, ROWS, COLS)
    stride_c, stride_h, stride_w = _strides(height, width, channels, CHANNELS_LAST)
    half: tl.constexpr = KERNEL // 2
    corner = (start + row * stride_h + col * stride_w)[:, None] + (channel * stride_c)[None, :]

    sums = _zeros(ROWS * COLS, POSITIONS, BLOCK_C)
    # A loop over rows of the input and unrolled columns: unrolled completely, 11 x 11 taps compile too long.
    for dy in range(KERNEL + ROWS - 1):
        y = row + dy - half
        is_row = is_place & (y >= 0) & (y < height)
        line = x_ptr + corner + (dy - half) * stride_h - half * stride_w
        for dx in tl.static_range(KERNEL + COLS - 1):
            inside = is_row & (col + dx >= half) & (col + dx < width + half)
            value = tl.load(line + dx * stride_w, mask=inside[:, None] & is_channel[None, :], other=0.0).to(tl.float32)
            for r in tl.static_range(ROWS):
                is_tap = is_channel & (dy >= r) & (dy - r < KERNEL)
                for c in tl.static_range(COLS):
                    if dx >= c and dx - c < KERNEL:
                        tap = (dy - r) * KERNEL + dx - c
                        if FLIP:
                            tap = KERNEL * KERNEL - 1 - tap
                        weight = tl.load(taps_ptr + tap * channels + channel, mask=is_tap, other=0.0)
                        sums = _replaced(sums, r * COLS + c, sums[r * COLS + c] + value * weight[None, :])

    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    else:
        bias = 0.0
    for r in tl.static_range(ROWS):
        for c in tl.static_range(COLS):
            offsets = corner + r * stride_h + c * stride_w
            inside = is_place & (row + r < height) & (col + c < width)
            mask = inside[:, None] & is_channel[None, :]
            result = sums[r * COLS + c] + bias
            if EPILOGUE == 'gelu':
                result = _gelu(result)
            if EPILOGUE == 'gelu_grad':
                result = _gelu_slope(result) * tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES + ['places_per_split'])
def depthwise_grad_weight_kernel(
    grad_ptr,
    x_ptr,
    partial_ptr,
    num_places,
    height,
    width,
    channels,
    places_high,
    places_wide,
    places_per_split,
    KERNEL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    COLS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of grad * x for TAP_ROWS rows of taps, and of grad, over one split of the places.

    Into partial (splits, KERNEL * KERNEL + 1, channels); the last row of a split is the bias's.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    first_tap_row = tl.program_id(1) * TAP_ROWS
    stride_c, stride_h, stride_w = _strides(height, width, channels, CHANNELS_LAST)
    half: tl.constexpr = KERNEL // 2
    split_start = tl.program_id(2) * places_per_split
    split_end = tl.minimum(split_start + places_per_split, num_places)

    sums = _zeros(TAP_ROWS * KERNEL, POSITIONS, BLOCK_C)
    total = tl.zeros((POSITIONS, BLOCK_C), tl.float32)
    for first in range(split_start, split_end, POSITIONS):
        place = first + tl.arange(0, POSITIONS)
        is_place = place < split_end
        row, col, start = _place(place, height, width, channels, places_high, places_wide, 1, COLS)
        corner = (start + row * stride_h + col * stride_w)[:, None] + (channel * stride_c)[None, :]
        grads = ()
        for c in tl.static_range(COLS):
            inside = is_place & (col + c < width)
            grad = tl.load(grad_ptr + corner + c * stride_w, mask=inside[:, None] & is_channel[None, :], other=0.0)
            grads = grads + (grad.to(tl.float32),)
            total += grads[c]
        for r in tl.static_range(TAP_ROWS):
            dy = first_tap_row + r - half
            is_row = is_place & (row + dy >= 0) & (row + dy < height)
            line = x_ptr + corner + dy * stride_h - half * stride_w
            for dx in tl.static_range(KERNEL + COLS - 1):
                inside = is_row & (col + dx >= half) & (col + dx < width + half)
                value = tl.load(line + dx * stride_w, mask=inside[:, None] & is_channel[None, :], other=0.0)
                value = value.to(tl.float32)
                for c in tl.static_range(COLS):
                    if dx >= c and dx - c < KERNEL:
                        sums = _replaced(sums, r * KERNEL + dx - c, sums[r * KERNEL + dx - c] + value * grads[c])

    partial_ptr += tl.program_id(2) * (KERNEL * KERNEL + 1) * channels + channel
    for r in tl.static_range(TAP_ROWS):
        for tap in tl.static_range(KERNEL):
            index = (first_tap_row + r) * KERNEL + tap
            tl.store(
                partial_ptr + index * channels,
                tl.sum(sums[r * KERNEL + tap], 0),
                mask=is_channel & (first_tap_row + r < KERNEL),
            )
    tl.store(partial_ptr + KERNEL * KERNEL * channels, tl.sum(total, 0), mask=is_channel & (first_tap_row == 0))
