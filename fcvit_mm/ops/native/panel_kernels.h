// Packing of weights for matrix products, and the matrix products that compute gradients of weights.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

// Eight rows of eight values become eight columns.
constexpr int64_t kTransposed = 8;
INLINE void transpose(const float* from, int64_t stride, float* to, int64_t to_stride) {
  __m256 a[8], b[8];
  UNROLL for (int i = 0; i < 8; ++i) {
    a[i] = _mm256_loadu_ps(from + i * stride);
  }
  UNROLL for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  UNROLL for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}

// `depth` rows of up to kProductRows columns, as interleaved rows. Sums of columns are added to `sums`, if not null.
void interleave(const float* from, int64_t stride, int64_t depth, int64_t columns, float* to, float* sums) {
  const Lanes lanes = first_lanes(columns);
  Vector sum = zero();
  for (int64_t i = 0; i < depth; ++i, from += stride, to += kProductRows) {
    const Vector values = load<true>(from, lanes);
    store(to, values);  // values beyond the row are overwritten next
    sum = sum + values;
  }
  if (sums) {
    store<true>(sums, lanes, (load<true>(sums, lanes) + sum));
  }
}

void pack_panels(const float* weight, int64_t stride, int64_t columns, int64_t depth, float* panels) {
  for (int64_t first = 0; first < columns; first += kTransposed) {
    const float* from = weight + first * stride;
    float* to = panels + first / kBlock * depth * kBlock + first % kBlock;
    const int64_t count = smaller(columns - first, kTransposed);
    int64_t i = 0;
    if (count == kTransposed) {
      for (; i + kTransposed <= depth; i += kTransposed) {
        transpose(from + i, stride, to + i * kBlock, kBlock);
      }
    }
    for (; i < depth; ++i) {
      for (int64_t j = 0; j < kTransposed; ++j) {
        to[i * kBlock + j] = j < count ? from[j * stride + i] : 0.f;
      }
    }
  }
}

void copy_panels(const float* weight, int64_t stride, int64_t columns, int64_t depth, float* panels) {
  for (; columns > 0; columns -= kBlock, weight += kBlock) {
    const float* from = weight;
    const Lanes left = first_lanes(smaller(columns, kLanes));
    const Lanes right = first_lanes(smaller(larger(columns - kLanes, 0), kLanes));
    for (int64_t i = 0; i < depth; ++i, from += stride, panels += kBlock) {
      store(panels, load<true>(from, left));
      store(panels + kLanes, load<true>(from + kLanes, right));
    }
  }
}

int64_t correlation_scratch_size(int64_t rows) {
  const int64_t left = (rows + kProductRows - 1) / kProductRows * kProductRows * kProductDepth + kLanes;
  return kBlock * kProductDepth + (left + kBlock - 1) / kBlock * kBlock;
}

void add_correlation(const Correlation& all, float* scratch) {
  float* const panel = scratch;
  float* const interleaved = scratch + kBlock * kProductDepth;
  ProductTile tile{};
  tile.out_stride = all.out_stride;
  tile.panel = panel;
  for (int64_t begin = 0; begin < all.count; begin += kProductDepth) {
    tile.depth = smaller(all.count - begin, kProductDepth);
    float* to = interleaved;
    for (int64_t row = 0; row < all.rows; to += kProductRows * tile.depth) {
      const int64_t rows = next_width(all.rows - row, kProductRows);
      interleave(all.left + begin * all.left_stride + row, all.left_stride, tile.depth, rows, to,
                 all.sums ? all.sums + row : nullptr);
      row += rows;
    }
    for (int64_t column = 0; column < all.columns; column += kBlock) {
      const int64_t columns = smaller(all.columns - column, kBlock);
      const int64_t vectors = (columns + kLanes - 1) / kLanes, last = columns - (vectors - 1) * kLanes;
      const MultiplyTiles& tiles = kMultiplyTile<true>[vectors - 1][last < kLanes];
      copy_panels(all.right + begin * all.right_stride + column, all.right_stride, columns, tile.depth, panel);
      tile.lanes = first_lanes(last);
      tile.rows = interleaved;
      for (int64_t row = 0; row < all.rows; tile.rows += kProductRows * tile.depth) {
        const int64_t rows = next_width(all.rows - row, kProductRows);
        tile.added = tile.out = all.out + row * all.out_stride + column;
        tiles.of(rows)(tile);
        row += rows;
      }
    }
  }
}

}  // namespace

void set_products(Kernels& kernels) {
  kernels.pack_panels = pack_panels;
  kernels.copy_panels = copy_panels;
  kernels.multiply = multiply;
  kernels.correlation_scratch_size = correlation_scratch_size;
  kernels.add_correlation = add_correlation;
}

}  // namespace INSTANCE
}  // namespace fcvit_mm
