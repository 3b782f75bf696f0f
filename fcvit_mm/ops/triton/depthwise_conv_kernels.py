"""The kernels of the depth-wise convolutions. Imports Triton: import it only where kernels are launched.

Maps are channels_last. A program computes ``ROWS x COLS`` neighbouring outputs for each of ``POSITIONS`` places and
``BLOCK_C`` channels, in as many accumulators: a loaded value serves every output whose window holds it, and a weight
``COLS`` outputs. Lanes go over the channels, so loads are full lines. The places of a program lie in the same rows (of
one image or several), so which rows of the kernel reach the map is one decision for the program: the others are
skipped. The compiler knows a divisor of the number of channels, ``UNIT``, so that it can load several channels at once.
With the number as a constant, ``CHANNELS``, addresses are constants, too. This is faster only for large kernels, and
needs a compilation for each number.
"""

# mypy: ignore-errors
# Triton compiles these functions, in which types and operators have meanings of its own.
import triton
import triton.language as tl

SIZES = ['num_places', 'height', 'width', 'places_wide', 'row_blocks', 'channel_units']


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
def _mask(inside, is_channel, EVEN: tl.constexpr):
    """Return the mask of the values of a tile that exist; with ``EVEN``, all of its channels do."""
    if EVEN:
        return inside[:, None]
    else:
        return inside[:, None] & is_channel[None, :]


@triton.jit
def _tap(pointer, is_channel, is_tap, EVEN: tl.constexpr, ALWAYS: tl.constexpr):
    """Return a tap for each channel, 0 if the tap is outside the kernel; with ``ALWAYS``, it is inside."""
    if EVEN and ALWAYS:
        return tl.load(pointer).to(tl.float32)
    elif ALWAYS:
        return tl.load(pointer, mask=is_channel, other=0.0).to(tl.float32)
    else:
        return tl.load(pointer, mask=is_channel & is_tap, other=0.0).to(tl.float32)


@triton.jit
def _distribution(v):
    """Return the cumulative normal distribution: 1/2 + v P(v^2) with a polynomial P fitted on [-5, 5]; 0 or 1 outside.

    Its error is at most 4e-7, that of GELU 2e-6. It needs no exponential and no division, which a GPU computes at a
    sixteenth of the rate of multiplications.
    """
    square = tl.minimum(v * v, 25.0) * 0.08 - 1.0
    poly = 0.000594829297 * square - 0.00161155528
    poly = poly * square + 0.001765998
    poly = poly * square - 0.00269210137
    poly = poly * square + 0.00636123816
    poly = poly * square - 0.0111564446
    poly = poly * square + 0.0164275467
    poly = poly * square - 0.0232725068
    poly = poly * square + 0.0314363897
    poly = poly * square - 0.0404418829
    poly = poly * square + 0.0515209935
    poly = poly * square - 0.0702963169
    poly = poly * square + 0.141363782
    inner = tl.minimum(tl.maximum(v, -5.0), 5.0) * poly + 0.5
    return tl.where(v < -5.0, 0.0, inner)


@triton.jit
def _gelu(v):
    return v * _distribution(v)


@triton.jit
def _gelu_slope(v):
    return _distribution(v) + v * tl.exp(-0.5 * v * v) * 0.3989422804014327


@triton.jit
def _add_value(
    sums,
    value,
    taps_ptr,
    tap_row,
    is_tap,
    is_channel,
    dx: tl.constexpr,
    r: tl.constexpr,
    channels,
    KERNEL: tl.constexpr,
    FLIP: tl.constexpr,
    COLS: tl.constexpr,
    EVEN: tl.constexpr,
    ALWAYS: tl.constexpr,
):
    """Add a column of values, times the taps of one row, to the outputs of a row whose windows contain it."""
    for c in tl.static_range(COLS):
        if dx >= c and dx - c < KERNEL:
            tap = tap_row * KERNEL + (dx - c)
            if FLIP:
                tap = KERNEL * KERNEL - 1 - tap
            weight = _tap(taps_ptr + tap * channels, is_channel, is_tap, EVEN, ALWAYS)
            sums = _replaced(sums, r * COLS + c, sums[r * COLS + c] + value * weight[None, :])
    return sums


@triton.jit
def _add_row(
    sums,
    line,
    taps_ptr,
    col,
    width,
    is_row,
    dy,
    is_channel,
    channels,
    KERNEL: tl.constexpr,
    FLIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    EVEN: tl.constexpr,
    STATIC: tl.constexpr,
):
    """Add the contribution of a row of the input; ``dy`` is its position in the window of the first outputs.

    ``STATIC``: ``dy`` is a constant, and the row may lie outside the map.
    """
    half: tl.constexpr = KERNEL // 2
    for dx in tl.static_range(KERNEL + COLS - 1):
        # One comparison: negative columns are large unsigned numbers.
        inside = (col + (dx - half)).to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True)
        if STATIC:
            inside = inside & is_row
        value = tl.load(line + (dx - half) * channels, mask=_mask(inside, is_channel, EVEN), other=0.0)
        value = value.to(tl.float32)
        for r in tl.static_range(ROWS):
            if STATIC:
                if dy >= r and dy - r < KERNEL:
                    sums = _add_value(
                        sums, value, taps_ptr, dy - r, True, is_channel, dx, r, channels, KERNEL, FLIP, COLS, EVEN, True
                    )
            else:
                is_tap = (dy >= r) & (dy - r < KERNEL)
                sums = _add_value(
                    sums, value, taps_ptr, dy - r, is_tap, is_channel, dx, r, channels, KERNEL, FLIP, COLS, EVEN,
                    ROWS == 1
                )  # fmt: skip
    return sums


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
    places_wide,
    row_blocks,
    channel_units,
    CHANNELS: tl.constexpr,
    UNIT: tl.constexpr,
    KERNEL: tl.constexpr,
    FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Convolve x depth-wise with taps (KERNEL * KERNEL, channels), flipped or not, then apply the epilogue.

    ``num_places`` counts the places of one row of places, over all images. The epilogues: ``none``; ``gelu``;
    ``gelu_grad``, the product of grad and GELU's slope at the convolution's output.
    """
    EVEN: tl.constexpr = UNIT % BLOCK_C == 0
    if CHANNELS > 0:
        channels: tl.constexpr = CHANNELS
    else:
        channels = channel_units * UNIT
    half: tl.constexpr = KERNEL // 2
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    row = tl.program_id(0) % row_blocks * ROWS
    place = tl.program_id(0) // row_blocks * POSITIONS + tl.arange(0, POSITIONS)
    col = place % places_wide * COLS
    image = (place // places_wide).to(tl.int64)  # a batch, and an image, may hold more than 2^31 values
    corner = (((image * height + row) * width + col) * channels)[:, None] + channel[None, :]
    # Lanes without a place get positions outside every row.
    col = tl.where(place < num_places, col, width + KERNEL)

    sums = _zeros(ROWS * COLS, POSITIONS, BLOCK_C)
    taps_ptr += channel
    stride = width.to(tl.int64) * channels
    line = x_ptr + corner - half * stride
    if KERNEL <= 5:
        for dy in tl.static_range(KERNEL + ROWS - 1):
            y = row + (dy - half)
            sums = _add_row(
                sums, line + dy * stride, taps_ptr, col, width, (y >= 0) & (y < height), dy, is_channel, channels,
                KERNEL, FLIP, ROWS, COLS, EVEN, True
            )  # fmt: skip
    else:
        # Unrolled completely, 11 x 11 taps compile too long.
        for dy in range(tl.maximum(half - row, 0), tl.minimum(KERNEL + ROWS - 1, height - row + half)):
            sums = _add_row(
                sums, line + dy * stride, taps_ptr, col, width, True, dy, is_channel, channels, KERNEL, FLIP, ROWS,
                COLS, EVEN, False
            )  # fmt: skip

    if HAS_BIAS:
        bias = _tap(bias_ptr + channel, is_channel, True, EVEN, True)[None, :]
    else:
        bias = 0.0
    for r in tl.static_range(ROWS):
        for c in tl.static_range(COLS):
            offsets = corner + r * stride + c * channels
            mask = _mask((row + r < height) & (col + c < width), is_channel, EVEN)
            result = sums[r * COLS + c] + bias
            if EPILOGUE == 'gelu':
                result = _gelu(result)
            if EPILOGUE == 'gelu_grad':
                result = _gelu_slope(result) * tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['num_places', 'height', 'width', 'places_wide', 'places_per_split', 'channel_units'])
def depthwise_grad_weight_kernel(
    grad_ptr,
    x_ptr,
    partial_ptr,
    num_places,
    height,
    width,
    places_wide,
    places_per_split,
    channel_units,
    UNIT: tl.constexpr,
    KERNEL: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    COLS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum grad * x for TAP_ROWS rows of taps, and grad, over one split of the places.

    ``num_places`` counts the places of all rows of all images. Into partial (splits, KERNEL * KERNEL + 1, channels);
    the last row of a split is the bias's.
    """
    EVEN: tl.constexpr = UNIT % BLOCK_C == 0
    channels = channel_units * UNIT
    half: tl.constexpr = KERNEL // 2
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    first_tap_row = tl.program_id(1) * TAP_ROWS
    split_start = tl.program_id(2) * places_per_split
    split_end = tl.minimum(split_start + places_per_split, num_places)
    stride = width.to(tl.int64) * channels

    sums = _zeros(TAP_ROWS * KERNEL, POSITIONS, BLOCK_C)
    total = tl.zeros((POSITIONS, BLOCK_C), tl.float32)
    for first in range(split_start, split_end, POSITIONS):
        place = first + tl.arange(0, POSITIONS)
        line_index = place // places_wide
        row = line_index % height
        col = place % places_wide * COLS
        corner = (line_index.to(tl.int64) * stride + col * channels)[:, None] + channel[None, :]
        col = tl.where(place < split_end, col, width + KERNEL)
        grads = ()
        for c in tl.static_range(COLS):
            mask = _mask(col + c < width, is_channel, EVEN)
            grads = grads + (tl.load(grad_ptr + corner + c * channels, mask=mask, other=0.0).to(tl.float32),)
            total += grads[c]
        for r in tl.static_range(TAP_ROWS):
            dy = first_tap_row + r - half
            is_row = (row + dy >= 0) & (row + dy < height)
            line = x_ptr + corner + dy * stride
            for dx in tl.static_range(KERNEL + COLS - 1):
                inside = (col + (dx - half)).to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True)
                value = tl.load(
                    line + (dx - half) * channels, mask=_mask(inside & is_row, is_channel, EVEN), other=0.0
                ).to(tl.float32)
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
