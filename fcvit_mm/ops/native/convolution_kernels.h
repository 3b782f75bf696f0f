// Depth-wise convolutions with 3x3 kernels, the gradients of all, and the packing of weights.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

// 3x3 kernels: read from the map itself, a few positions at a time and along all of their channels.

// Number of values above which a map is prefetched: 0.5 MiB, a common size of a second-level cache.
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
  // Prefetch what the tiles below this one read first: the processor itself prefetches along a row, but not the next
  // row. Not in small maps, where that is slower.
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
