// Depth-wise convolutions.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

// Large kernels: the part of the map that a region needs is first copied to where neighbouring columns are neighbouring
// vectors, with zeros outside. In the map they are C values apart, often a power of two: the cache would hold few.

template <bool kPartial>
void copy_columns(const float* from, int64_t stride, int64_t count, Lanes lanes, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    store(to + i * kLanes, load<kPartial>(from + i * stride, lanes));
  }
}

void zero_columns(int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    store(to + i * kLanes, zero());
  }
}

// Rows from `top` to `bottom` and columns from `left` to `right` of a map of one image, for kBlock channels: a plane for
// each vector of them.
void copy_rows(const float* x, int64_t width, int64_t channels, int64_t channel, int64_t top, int64_t bottom,
               int64_t left, int64_t right, float* scratch) {
  const int64_t inside_left = larger(left, 0), inside_right = smaller(right, width);
  const int64_t row_stride = (right - left) * kLanes, plane = (bottom - top) * row_stride;
  for (int64_t row = top; row < bottom; ++row) {
    for (int64_t first = 0; first < kBlock && channel + first < channels; first += kLanes) {
      const int64_t count = smaller(channels - channel - first, kLanes);
      const float* from = x + (row * width + inside_left) * channels + channel + first;
      float* to = scratch + first / kLanes * plane + (row - top) * row_stride;
      const Lanes lanes = first_lanes(count);
      zero_columns(inside_left - left, to);
      to += (inside_left - left) * kLanes;
      if (count == kLanes) {
        copy_columns<false>(from, channels, inside_right - inside_left, lanes, to);
      } else {
        copy_columns<true>(from, channels, inside_right - inside_left, lanes, to);
      }
      zero_columns(right - inside_right, to + (inside_right - inside_left) * kLanes);
    }
  }
}

// The inputs of a tile of outputs, kRows x kColumns of one vector of channels.
struct Tile {
  const float* x;      // the copied value under the first tap of the first output
  int64_t row_stride;  // of the copy
  const float* taps;
  int64_t kernel;
  int64_t row_begin, row_end;  // rows below x to read: those inside the map
  int64_t tap_begin, tap_end;  // columns of taps that meet the map at all
  Vector bias;
  float* out;
  int64_t out_row_stride, out_column_stride;
  Lanes lanes;
  bool partial, gelu;
};

// Adds one row of the map, times one row of taps for each row of outputs. Rows of outputs before kFirst or after kLast
// do not meet it.
template <int kFirst, int kLast, int kColumns>
INLINE void add_row(const float* x, const float* taps, int64_t kernel, int64_t count, Vector (*sums)[kColumns]) {
  for (int64_t i = 0; i < count; ++i, x += kLanes, taps += kLanes) {
    Vector tap[kLast + 1];
    UNROLL for (int r = kFirst; r <= kLast; ++r) {
      tap[r] = load(taps - r * kernel * kLanes);
    }
    UNROLL for (int t = 0; t < kColumns; ++t) {
      Vector value = load(x + t * kLanes);
      KEEP_IN_REGISTER(value);
      UNROLL for (int r = kFirst; r <= kLast; ++r) {
        sums[r][t] = multiply_add(value, tap[r], sums[r][t]);
      }
    }
  }
}

template <int kRows, int kColumns>
void convolve_tile(const Tile& tile) {
  Vector sums[kRows][kColumns];
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int t = 0; t < kColumns; ++t) {
      sums[r][t] = tile.bias;
    }
  }
  const int64_t kernel = tile.kernel, count = tile.tap_end - tile.tap_begin;
  const float* x = tile.x + tile.row_begin * tile.row_stride + tile.tap_begin * kLanes;
  const float* taps = tile.taps + (tile.row_begin * kernel + tile.tap_begin) * kLanes;
  int64_t row = tile.row_begin;
  if (kRows == 2 && row == 0 && row < tile.row_end) {
    add_row<0, 0, kColumns>(x, taps, kernel, count, sums);
    ++row, x += tile.row_stride, taps += kernel * kLanes;
  }
  for (const int64_t end = smaller(kernel, tile.row_end); row < end;
       ++row, x += tile.row_stride, taps += kernel * kLanes) {
    add_row<0, kRows - 1, kColumns>(x, taps, kernel, count, sums);
  }
  if (kRows == 2 && row < tile.row_end) {
    add_row<kRows - 1, kRows - 1, kColumns>(x, taps, kernel, count, sums);
  }
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int t = 0; t < kColumns; ++t) {
      const Vector result = tile.gelu ? gelu(sums[r][t]) : sums[r][t];
      float* out = tile.out + r * tile.out_row_stride + t * tile.out_column_stride;
      if (tile.partial) {
        store<true>(out, tile.lanes, result);
      } else {
        store<false>(out, tile.lanes, result);
      }
    }
  }
}

using ConvolveTile = void (*)(const Tile&);
template <int kRows, int... kColumns>
constexpr Table<ConvolveTile, kConvolutionColumns> convolve_tiles(Counts<kColumns...>) {
  return {{convolve_tile<kRows, kColumns>...}};
}
constexpr Table<ConvolveTile, kConvolutionColumns> kConvolveTile[2] = {
    convolve_tiles<1>(CountsTo<kConvolutionColumns>::type()), convolve_tiles<2>(CountsTo<kConvolutionColumns>::type())};

// 3x3 kernels: read from the map itself, a few positions at a time and along all of their channels.

// Values beyond which a map is fetched ahead: 0.5 MiB, a common size of a second-level cache.
constexpr int64_t kLargeMap = 128 * 1024;

template <int kRows, int kColumns, bool kPartial>
INLINE void convolve_3x3_vector(const float* const (*x)[kColumns + 2], const float* taps, Vector bias, Lanes lanes,
                                bool with_gelu, float* out, int64_t row_stride, int64_t column_stride,
                                int64_t channel) {
  Vector sums[kRows][kColumns];
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int t = 0; t < kColumns; ++t) {
      sums[r][t] = bias;
    }
  }
  UNROLL for (int i = 0; i < kRows + 2; ++i) {
    UNROLL for (int j = 0; j < kColumns + 2; ++j) {
      const Vector value = load<kPartial>(x[i][j] + channel, lanes);
      UNROLL for (int r = 0; r < kRows; ++r) {
        UNROLL for (int t = 0; t < kColumns; ++t) {
          if (i >= r && i < r + 3 && j >= t && j < t + 3) {
            const Vector tap = load(taps + ((i - r) * 3 + j - t) * kLanes);
            sums[r][t] = multiply_add(value, tap, sums[r][t]);
          }
        }
      }
    }
  }
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int t = 0; t < kColumns; ++t) {
      const Vector result = with_gelu ? gelu(sums[r][t]) : sums[r][t];
      store<kPartial>(out + r * row_stride + t * column_stride + channel, lanes, result);
    }
  }
}

template <int kRows, int kColumns, bool kGelu>
void convolve_3x3_tile(const Convolution& conv, int64_t image, int64_t row, int64_t column, int64_t begin, int64_t end,
                       const float* taps, const float* zeros) {
  const int64_t column_stride = conv.channels, row_stride = conv.width * conv.channels;
  const int64_t start = image * conv.height * row_stride;
  const float* x[kRows + 2][kColumns + 2];
  for (int i = 0; i < kRows + 2; ++i) {
    const int64_t y = row + i - 1;
    const float* const from = conv.x + start + (conv.ring ? (y + conv.shift) % conv.ring : y) * row_stride;
    for (int j = 0; j < kColumns + 2; ++j) {
      const int64_t z = column + j - 1;
      const bool inside = y >= 0 && y < conv.height && z >= 0 && z < conv.width;
      x[i][j] = inside ? from + z * column_stride : zeros;
    }
  }
  float* out = conv.out + start + row * row_stride + column * column_stride;
  const Lanes lanes = first_lanes(smaller(kLanes, end - begin));
  // Fetch ahead what the tiles below this one read first: the processor foresees a row, not the next one. Not
  // in small maps, where that is slower.
  const bool large = !conv.ring && conv.height * conv.width * (end - begin) > kLargeMap;
  const float* ahead = large && row + kRows + 2 < conv.height ? x[kRows][1] + 2 * row_stride : nullptr;
  int64_t channel = begin;
  for (; channel + kLanes <= end; channel += kLanes) {
    if (ahead) {
      UNROLL for (int t = 0; t < kColumns; ++t) {
        _mm_prefetch(ahead + t * column_stride + channel, _MM_HINT_T1);
        _mm_prefetch(ahead + row_stride + t * column_stride + channel, _MM_HINT_T1);
      }
    }
    const Vector bias = conv.bias ? load(conv.bias + channel) : zero();
    convolve_3x3_vector<kRows, kColumns, false>(x, taps + channel * 9, bias, lanes, kGelu, out, row_stride,
                                                column_stride, channel);
  }
  if (channel < end) {
    const Lanes rest = first_lanes(end - channel);
    const Vector bias = conv.bias ? load<true>(conv.bias + channel, rest) : zero();
    convolve_3x3_vector<kRows, kColumns, true>(x, taps + channel * 9, bias, rest, kGelu, out, row_stride,
                                               column_stride, channel);
  }
}

using Convolve3x3Tile = void (*)(const Convolution&, int64_t, int64_t, int64_t, int64_t, int64_t, const float*,
                                 const float*);
using Convolve3x3Tiles = Table<Convolve3x3Tile, kConvolution3x3Columns>;
template <int kRows, bool kGelu, int... kColumns>
constexpr Convolve3x3Tiles convolve_3x3_tiles(Counts<kColumns...>) {
  return {{convolve_3x3_tile<kRows, kColumns, kGelu>...}};
}
using Columns3x3 = CountsTo<kConvolution3x3Columns>::type;
constexpr Convolve3x3Tiles kConvolve3x3Tile[2][2] = {
    {convolve_3x3_tiles<1, false>(Columns3x3()), convolve_3x3_tiles<2, false>(Columns3x3())},
    {convolve_3x3_tiles<1, true>(Columns3x3()), convolve_3x3_tiles<2, true>(Columns3x3())}};

// Gradients of weights.

// Adds the products of rows of gradients with those of the map under kTaps neighbouring taps of one row of the kernel,
// both as copied. Two columns at a time: most values of the map serve both.
template <int kTaps>
void add_taps(const float* x, int64_t x_stride, const float* grad, int64_t grad_stride, int64_t rows, int64_t columns,
              float* sums) {
  Vector total[kTaps];
  UNROLL for (int j = 0; j < kTaps; ++j) {
    total[j] = load(sums + j * kLanes);
  }
  for (int64_t row = 0; row < rows; ++row, x += x_stride, grad += grad_stride) {
    const float *from = x, *of = grad;
    int64_t column = 0;
    for (; column + 2 <= columns; column += 2, from += 2 * kLanes, of += 2 * kLanes) {
      const Vector left = load(of), right = load(of + kLanes);
      UNROLL for (int j = 0; j <= kTaps; ++j) {
        Vector value = load(from + j * kLanes);
        KEEP_IN_REGISTER(value);
        if (j < kTaps) {
          total[j] = multiply_add(value, left, total[j]);
        }
        if (j > 0) {
          total[j - 1] = multiply_add(value, right, total[j - 1]);
        }
      }
    }
    if (column < columns) {
      const Vector left = load(of);
      UNROLL for (int j = 0; j < kTaps; ++j) {
        total[j] = multiply_add(load(from + j * kLanes), left, total[j]);
      }
    }
  }
  UNROLL for (int j = 0; j < kTaps; ++j) {
    store(sums + j * kLanes, total[j]);
  }
}

// 11 sums, two gradients and a value.
constexpr int kMaxTaps = 11;
using AddTaps = void (*)(const float*, int64_t, const float*, int64_t, int64_t, int64_t, float*);
template <int... kTaps>
constexpr Table<AddTaps, kMaxTaps> add_taps_of(Counts<kTaps...>) {
  return {{add_taps<kTaps>...}};
}
constexpr Table<AddTaps, kMaxTaps> kAddTaps = add_taps_of(CountsTo<kMaxTaps>::type());

template <int kRows, int kColumns, bool kPartial, bool kGelu>
INLINE void add_gradient_3x3_vector(const Gradient& gradient, const float* const (*x)[kColumns + 2], int64_t offset,
                                    int64_t channel, Lanes lanes, float* sums) {
  const int64_t row_stride = gradient.width * gradient.channels;
  const float* grad = gradient.grad + offset + channel;
  Vector grads[kRows][kColumns];
  if (kGelu) {
    const float* all_taps = gradient.taps + channel * 9;
    const Vector bias = gradient.bias ? load<kPartial>(gradient.bias + channel, lanes) : zero();
    UNROLL for (int r = 0; r < kRows; ++r) {
      UNROLL for (int t = 0; t < kColumns; ++t) {
        grads[r][t] = bias;
      }
    }
    UNROLL for (int i = 0; i < kRows + 2; ++i) {
      UNROLL for (int j = 0; j < kColumns + 2; ++j) {
        const Vector value = load<kPartial>(x[i][j] + channel, lanes);
        UNROLL for (int r = 0; r < kRows; ++r) {
          UNROLL for (int t = 0; t < kColumns; ++t) {
            if (i >= r && i < r + 3 && j >= t && j < t + 3) {
              const Vector tap = load(all_taps + ((i - r) * 3 + j - t) * kLanes);
              grads[r][t] = multiply_add(value, tap, grads[r][t]);
            }
          }
        }
      }
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
      UNROLL for (int t = 0; t < kColumns; ++t) {
        const int64_t place = r * row_stride + t * gradient.channels;
        Vector slope;
        const Vector activated = gelu_and_slope(grads[r][t], slope);
        store<kPartial>(gradient.activated + offset + channel + place, lanes, activated);
        grads[r][t] = load<kPartial>(grad + place, lanes) * slope;
        store<kPartial>(gradient.out + offset + channel + place, lanes, grads[r][t]);
      }
    }
  } else {
    UNROLL for (int r = 0; r < kRows; ++r) {
      UNROLL for (int t = 0; t < kColumns; ++t) {
        grads[r][t] = load<kPartial>(grad + r * row_stride + t * gradient.channels, lanes);
      }
    }
  }
  // The taps of one row at a time, for as many registers.
  Vector of_bias = load(sums + 9 * kLanes);
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int t = 0; t < kColumns; ++t) {
      of_bias = of_bias + grads[r][t];
    }
  }
  store(sums + 9 * kLanes, of_bias);
  UNROLL for (int i = 0; i < 3; ++i) {
    Vector total[3];
    UNROLL for (int j = 0; j < 3; ++j) {
      total[j] = load(sums + (i * 3 + j) * kLanes);
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
      UNROLL for (int j = 0; j < kColumns + 2; ++j) {
        const Vector value = load<kPartial>(x[r + i][j] + channel, lanes);
        UNROLL for (int t = 0; t < kColumns; ++t) {
          if (j >= t && j < t + 3) {
            total[j - t] = multiply_add(value, grads[r][t], total[j - t]);
          }
        }
      }
    }
    UNROLL for (int j = 0; j < 3; ++j) {
      store(sums + (i * 3 + j) * kLanes, total[j]);
    }
  }
}

template <int kRows, int kColumns, bool kGelu>
void add_gradient_3x3_tile(const Gradient& gradient, int64_t image, int64_t row, int64_t column, int64_t begin,
                           int64_t end, float* sums, const float* zeros) {
  const int64_t column_stride = gradient.channels, row_stride = gradient.width * gradient.channels;
  const int64_t start = image * gradient.height * row_stride;
  const float* x[kRows + 2][kColumns + 2];
  for (int i = 0; i < kRows + 2; ++i) {
    for (int j = 0; j < kColumns + 2; ++j) {
      const int64_t y = row + i - 1, z = column + j - 1;
      const bool inside = y >= 0 && y < gradient.height && z >= 0 && z < gradient.width;
      x[i][j] = inside ? gradient.x + start + y * row_stride + z * column_stride : zeros;
    }
  }
  const int64_t offset = start + row * row_stride + column * column_stride;
  int64_t channel = begin;
  for (; channel + kLanes <= end; channel += kLanes, sums += 10 * kLanes) {
    add_gradient_3x3_vector<kRows, kColumns, false, kGelu>(gradient, x, offset, channel, first_lanes(kLanes), sums);
  }
  if (channel < end) {
    add_gradient_3x3_vector<kRows, kColumns, true, kGelu>(gradient, x, offset, channel, first_lanes(end - channel),
                                                          sums);
  }
}

using AddGradient3x3Tile = void (*)(const Gradient&, int64_t, int64_t, int64_t, int64_t, int64_t, float*,
                                    const float*);
using AddGradient3x3Tiles = Table<AddGradient3x3Tile, kConvolution3x3Columns>;
template <int kRows, bool kGelu, int... kColumns>
constexpr AddGradient3x3Tiles add_gradient_3x3_tiles(Counts<kColumns...>) {
  return {{add_gradient_3x3_tile<kRows, kColumns, kGelu>...}};
}
constexpr AddGradient3x3Tiles kAddGradient3x3Tile[2][2] = {
    {add_gradient_3x3_tiles<1, false>(Columns3x3()), add_gradient_3x3_tiles<2, false>(Columns3x3())},
    {add_gradient_3x3_tiles<1, true>(Columns3x3()), add_gradient_3x3_tiles<2, true>(Columns3x3())}};

void pack_taps(const Convolution& conv, int64_t first, int64_t count, float* taps) {
  const int64_t area = conv.kernel * conv.kernel;
  for (int64_t i = 0; i < count; ++i) {
    float* to = taps + i / kLanes * area * kLanes + i % kLanes;
    const float* from = conv.weight + (first + i) * area;
    const bool inside = first + i < conv.channels;
    for (int64_t tap = 0; tap < area; ++tap) {
      to[tap * kLanes] = inside ? from[tap] : 0.f;
    }
  }
}

int64_t scratch_size(int64_t rows, int64_t columns, int64_t kernel) {
  return (rows + kernel - 1) * (columns + kernel - 1) * kBlock;
}

void convolve_region(const Convolution& conv, const Region& region, const float* taps, float* scratch) {
  const int64_t kernel = conv.kernel, padding = kernel / 2, channels = conv.channels;
  const int64_t image = region.image * conv.height * conv.width;
  // Copied are the rows inside the map, and columns with zeros outside.
  const int64_t top = larger(region.row_begin - padding, 0);
  const int64_t bottom = smaller(region.row_end + padding, conv.height);
  const int64_t left = region.column_begin - padding, right = region.column_end + padding;
  const int64_t row_stride = (right - left) * kLanes, plane = (bottom - top) * row_stride;

  copy_rows(conv.x + image * channels, conv.width, channels, region.channel, top, bottom, left, right, scratch);

  // Both vectors of a block for the same rows: together they fill the cache lines of the output.
  for (int64_t row = region.row_begin; row < region.row_end; row += 2) {
    const int64_t rows = smaller(region.row_end - row, 2);
    for (int64_t first = 0; first < kBlock && region.channel + first < channels; first += kLanes) {
      const int64_t channel = region.channel + first, count = smaller(channels - channel, kLanes);
      Tile tile;
      tile.row_stride = row_stride;
      tile.taps = taps + first * kernel * kernel;
      tile.kernel = kernel;
      tile.lanes = first_lanes(count);
      tile.partial = count < kLanes;
      tile.bias = conv.bias ? load<true>(conv.bias + channel, tile.lanes) : zero();
      tile.gelu = conv.gelu;
      tile.out_row_stride = conv.width * channels;
      tile.out_column_stride = channels;
      tile.row_begin = larger(padding - row, 0);
      tile.row_end = smaller(kernel + rows - 1, conv.height - row + padding);
      const float* x = scratch + first / kLanes * plane + (row - padding - top) * row_stride;
      for (int64_t column = region.column_begin; column < region.column_end;) {
        const int64_t columns = next_width(region.column_end - column, kConvolutionColumns);
        tile.tap_begin = larger(padding - (column + columns - 1), 0);
        tile.tap_end = smaller(kernel, conv.width + padding - column);
        tile.x = x + (column - region.column_begin) * kLanes;
        tile.out = conv.out + (image + row * conv.width + column) * channels + channel;
        kConvolveTile[rows - 1].of(columns)(tile);
        column += columns;
      }
    }
  }
}

void convolve_3x3_rows(const Convolution& conv, int64_t image, int64_t row, int64_t rows, int64_t begin, int64_t end,
                       const float* taps, const float* zeros) {
  for (int64_t column = 0; column < conv.width;) {
    const int64_t columns = next_width(conv.width - column, kConvolution3x3Columns);
    kConvolve3x3Tile[conv.gelu][rows - 1].of(columns)(conv, image, row, column, begin, end, taps, zeros);
    column += columns;
  }
}

int64_t gradient_scratch_size(int64_t rows, int64_t columns, int64_t kernel) {
  return scratch_size(rows, columns, kernel) + rows * columns * kBlock;
}

void add_gradient_of_region(const Gradient& gradient, const Region& region, float* sums, float* scratch) {
  const int64_t kernel = gradient.kernel, padding = kernel / 2, channels = gradient.channels;
  const int64_t image = region.image * gradient.height * gradient.width * channels;
  const int64_t top = larger(region.row_begin - padding, 0);
  const int64_t bottom = smaller(region.row_end + padding, gradient.height);
  const int64_t left = region.column_begin - padding, right = region.column_end + padding;
  const int64_t rows = region.row_end - region.row_begin, columns = region.column_end - region.column_begin;
  const int64_t stride = (right - left) * kLanes, plane = (bottom - top) * stride;
  const int64_t grad_stride = columns * kLanes, grad_plane = rows * grad_stride;
  float* grads = scratch + kBlock / kLanes * plane;
  copy_rows(gradient.x + image, gradient.width, channels, region.channel, top, bottom, left, right, scratch);
  copy_rows(gradient.grad + image, gradient.width, channels, region.channel, region.row_begin, region.row_end,
            region.column_begin, region.column_end, grads);
  for (int64_t first = 0; first < kBlock && region.channel + first < channels; first += kLanes) {
    const float* x = scratch + first / kLanes * plane;
    const float* grad = grads + first / kLanes * grad_plane;
    float* to = sums + first * (kernel * kernel + 1);
    for (int64_t i = 0; i < kernel; ++i) {
      const int64_t row_begin = larger(region.row_begin, padding - i);
      const int64_t row_end = smaller(region.row_end, gradient.height + padding - i);
      if (row_begin >= row_end) {
        continue;
      }
      for (int64_t j = 0; j < kernel;) {
        const int64_t taps = next_width(kernel - j, kMaxTaps);
        kAddTaps.of(taps)(x + (row_begin + i - padding - top) * stride + j * kLanes, stride,
                           grad + (row_begin - region.row_begin) * grad_stride, grad_stride, row_end - row_begin,
                           columns, to + (i * kernel + j) * kLanes);
        j += taps;
      }
    }
    Vector of_bias = load(to + kernel * kernel * kLanes);
    for (int64_t i = 0; i < grad_plane; i += kLanes) {
      of_bias = of_bias + load(grad + i);
    }
    store(to + kernel * kernel * kLanes, of_bias);
  }
}

void add_gradient_3x3_rows(const Gradient& gradient, int64_t image, int64_t row, int64_t rows, int64_t begin,
                           int64_t end, float* sums, const float* zeros) {
  for (int64_t column = 0; column < gradient.width;) {
    const int64_t columns = next_width(gradient.width - column, kConvolution3x3Columns);
    kAddGradient3x3Tile[gradient.out != nullptr][rows - 1].of(columns)(gradient, image, row, column, begin, end, sums,
                                                                        zeros);
    column += columns;
  }
}

void gelu_gradient(float* x, const float* grad, int64_t count) {
  int64_t i = 0;
  Vector slope;
  for (; i + kLanes <= count; i += kLanes) {
    gelu_and_slope(load(x + i), slope);
    store(x + i, (load(grad + i) * slope));
  }
  if (i < count) {
    const Lanes rest = first_lanes(count - i);
    gelu_and_slope(load<true>(x + i, rest), slope);
    store<true>(x + i, rest, (load<true>(grad + i, rest) * slope));
  }
}

}  // namespace

void set_convolutions(Kernels& kernels) {
  kernels.lanes = kLanes;
  kernels.block = kBlock;
  kernels.pack_taps = pack_taps;
  kernels.scratch_size = scratch_size;
  kernels.convolve_region = convolve_region;
  kernels.convolve_3x3_rows = convolve_3x3_rows;
  kernels.gradient_scratch_size = gradient_scratch_size;
  kernels.add_gradient_of_region = add_gradient_of_region;
  kernels.add_gradient_3x3_rows = add_gradient_3x3_rows;
  kernels.gelu = gelu;
  kernels.gelu_gradient = gelu_gradient;
}

}  // namespace INSTANCE
}  // namespace fcvit_mm
