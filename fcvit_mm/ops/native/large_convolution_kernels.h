// Depth-wise convolutions with large kernels: of float32, or of pairs of bfloat16 where PAIRS is defined.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

// Large kernels: the part of the map that a region needs is first copied so that neighbouring columns are neighbouring
// vectors, with zeros outside. In the map they are C values apart, often a power of two: few would fit in the cache.

#ifdef PAIRS
// Taps that one addition takes: those of a column and of the next, whose values lie side by side in each copied vector.
constexpr int64_t kTogether = 2;

// Values as bfloat16, in the lower halves of the lanes.
INLINE __m512i halves(Vector values) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values)); }

template <bool kPartial>
void copy_columns(const float* from, int64_t stride, int64_t count, Lanes lanes, bool has_column_before, float* to) {
  __m512i column = halves(load<kPartial>(from, lanes));
  if (has_column_before) {
    store(to - kLanes, (Vector)_mm512_slli_epi32(column, 16));
  }
  for (int64_t i = 1; i <= count; ++i, to += kLanes) {
    const __m512i next = i < count ? halves(load<kPartial>(from + i * stride, lanes)) : _mm512_setzero_si512();
    store(to, (Vector)_mm512_or_si512(column, _mm512_slli_epi32(next, 16)));
    column = next;
  }
}
#else
constexpr int64_t kTogether = 1;

template <bool kPartial>
void copy_columns(const float* from, int64_t stride, int64_t count, Lanes lanes, bool, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    store(to + i * kLanes, load<kPartial>(from + i * stride, lanes));
  }
}
#endif

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
        copy_columns<false>(from, channels, inside_right - inside_left, lanes, inside_left > left, to);
      } else {
        copy_columns<true>(from, channels, inside_right - inside_left, lanes, inside_left > left, to);
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
  int64_t tap_begin, tap_end;  // columns of taps that overlap the map
  Vector bias;
  float* out;
  int64_t out_row_stride, out_column_stride;
  Lanes lanes;
  bool partial, gelu;
};

// Adds one row of the map, times one row of taps for each row of outputs. Rows of outputs before kFirst or after kLast
// do not depend on it.
template <int kFirst, int kLast, int kColumns>
INLINE void add_row(const float* x, const float* taps, int64_t taps_stride, int64_t count, Vector (*sums)[kColumns]) {
  for (int64_t i = 0; i < count; ++i, x += kTogether * kLanes, taps += kLanes) {
    Vector tap[kLast + 1];
    UNROLL for (int r = kFirst; r <= kLast; ++r) {
      tap[r] = load(taps - r * taps_stride);
    }
    UNROLL for (int t = 0; t < kColumns; ++t) {
      Vector value = load(x + t * kLanes);
      KEEP_IN_REGISTER(value);
      UNROLL for (int r = kFirst; r <= kLast; ++r) {
        sums[r][t] = add_product(value, tap[r], sums[r][t]);
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
  const int64_t kernel = tile.kernel, taps_stride = (kernel + kTogether - 1) / kTogether * kLanes;
  const int64_t first = tile.tap_begin / kTogether, count = (tile.tap_end + kTogether - 1) / kTogether - first;
  const float* x = tile.x + tile.row_begin * tile.row_stride + first * kTogether * kLanes;
  const float* taps = tile.taps + tile.row_begin * taps_stride + first * kLanes;
  int64_t row = tile.row_begin;
  if (kRows == 2 && row == 0 && row < tile.row_end) {
    add_row<0, 0, kColumns>(x, taps, taps_stride, count, sums);
    ++row, x += tile.row_stride, taps += taps_stride;
  }
  for (const int64_t end = smaller(kernel, tile.row_end); row < end; ++row, x += tile.row_stride, taps += taps_stride) {
    add_row<0, kRows - 1, kColumns>(x, taps, taps_stride, count, sums);
  }
  if (kRows == 2 && row < tile.row_end) {
    add_row<kRows - 1, kRows - 1, kColumns>(x, taps, taps_stride, count, sums);
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
      tile.taps = taps + first * kernel * ((kernel + kTogether - 1) / kTogether);
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

}  // namespace
}  // namespace INSTANCE
}  // namespace fcvit_mm
