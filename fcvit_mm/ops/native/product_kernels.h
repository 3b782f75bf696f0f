// Matrix products, which 1x1 convolutions are.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

struct ProductTile {
  const float* rows;
  int64_t row_stride, depth;  // the stride is not read of interleaved rows
  const float* panel;
  const float* bias;  // of these columns, or null
  float* out;
  int64_t out_stride;
  const float* added;  // with the strides of `out`, or null
  Lanes lanes;  // of the last vector
};

// The products of kRows rows and the first kVectors vectors of a panel's columns. Interleaved rows are kProductRows
// values, one of each row, after the other.
template <int kRows, int kVectors, bool kPartial, bool kInterleaved>
void multiply_tile(const ProductTile& tile) {
  constexpr int kLast = kVectors - 1;
  const Lanes lanes = tile.lanes;
  const int64_t stride = kInterleaved ? 1 : tile.row_stride, step = kInterleaved ? kProductRows : 1;
  const int64_t out_stride = tile.out_stride;
  float* const out = tile.out;
  Vector sums[kRows][kVectors];
  UNROLL for (int t = 0; t < kVectors; ++t) {
    const bool partial = kPartial && t == kLast;
    Vector bias = zero();
    if (tile.bias) {
      bias = partial ? load<true>(tile.bias + t * kLanes, lanes) : load<false>(tile.bias + t * kLanes, lanes);
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
      sums[r][t] = bias;
    }
    if (tile.added) {
      UNROLL for (int r = 0; r < kRows; ++r) {
        const float* from = tile.added + r * out_stride + t * kLanes;
        sums[r][t] = bias + (partial ? load<true>(from, lanes) : load<false>(from, lanes));
      }
    }
  }
  const float* x = tile.rows;
  const float* panel = tile.panel;
  const float* const end = x + tile.depth * step;
#pragma GCC unroll 4
  for (; x < end; x += step, panel += kBlock) {
    Vector weight[kVectors];
    UNROLL for (int t = 0; t < kVectors; ++t) {
      weight[t] = load(panel + t * kLanes);
      KEEP_IN_REGISTER(weight[t]);
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
      const Vector value = broadcast(x + r * stride);
      UNROLL for (int t = 0; t < kVectors; ++t) {
        sums[r][t] = multiply_add(value, weight[t], sums[r][t]);
      }
    }
  }
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int t = 0; t < kVectors; ++t) {
      float* to = out + r * out_stride + t * kLanes;
      if (kPartial && t == kLast) {
        store<true>(to, lanes, sums[r][t]);
      } else {
        store<false>(to, lanes, sums[r][t]);
      }
    }
  }
}

using MultiplyTile = void (*)(const ProductTile&);
using MultiplyTiles = Table<MultiplyTile, kProductRows>;
template <int kVectors, bool kPartial, bool kInterleaved, int... kRows>
constexpr MultiplyTiles multiply_tiles(Counts<kRows...>) {
  return {{multiply_tile<kRows, kVectors, kPartial, kInterleaved>...}};
}
using ProductCounts = CountsTo<kProductRows>::type;
template <bool kInterleaved>
constexpr MultiplyTiles kMultiplyTile[2][2] = {{multiply_tiles<1, false, kInterleaved>(ProductCounts()),
                                                multiply_tiles<1, true, kInterleaved>(ProductCounts())},
                                               {multiply_tiles<2, false, kInterleaved>(ProductCounts()),
                                                multiply_tiles<2, true, kInterleaved>(ProductCounts())}};

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

// `depth` rows of up to kProductRows columns, as interleaved rows. `sums` becomes larger by each column's sum, if not null.
void interleave(const float* from, int64_t stride, int64_t depth, int64_t columns, float* to, float* sums) {
  const Lanes lanes = first_lanes(columns);
  Vector sum = zero();
  for (int64_t i = 0; i < depth; ++i, from += stride, to += kProductRows) {
    const Vector values = load<true>(from, lanes);
    store(to, values);  // what is too much is overwritten next
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

void multiply(const Product& product) {
  ProductTile tile;
  tile.row_stride = product.row_stride;
  tile.out_stride = product.out_stride;
  const int64_t panel_stride = product.panel_stride ? product.panel_stride : product.depth * kBlock;
  for (int64_t begin = 0; begin == 0 || begin < product.depth; begin += kProductDepth) {
    tile.depth = smaller(product.depth - begin, kProductDepth);
    const float* added = begin > 0 ? product.out : product.added;
    const bool last_depth = begin + tile.depth == product.depth;
    for (int64_t column = 0; column < product.columns; column += kBlock) {
      const int64_t columns = smaller(product.columns - column, kBlock);
      const int64_t vectors = (columns + kLanes - 1) / kLanes, last = columns - (vectors - 1) * kLanes;
      const MultiplyTiles& tiles = kMultiplyTile<false>[vectors - 1][last < kLanes];
      tile.lanes = first_lanes(last);
      tile.panel = product.panels + column / kBlock * panel_stride + begin * kBlock;
      tile.bias = product.bias && begin == 0 ? product.bias + column : nullptr;
      const float* ahead = nullptr;
      if (product.cold) {
        ahead = column + kBlock < product.columns ? tile.panel + panel_stride
                : last_depth                      ? product.next
                                                  : product.panels + (begin + tile.depth) * kBlock;
      }
      const int64_t tiles_of_rows = (product.count + kProductRows - 1) / kProductRows;
      const int64_t share = ahead ? kBlock * tile.depth / tiles_of_rows : 0;
      for (int64_t row = 0; row < product.count; ahead += share) {
        const int64_t rows = next_width(product.count - row, kProductRows);
        prefetch(ahead, share);
        tile.rows = product.rows + row * product.row_stride + begin;
        tile.out = product.out + row * product.out_stride + column;
        tile.added = added ? added + row * product.out_stride + column : nullptr;
        tiles.of(rows)(tile);
        if (last_depth && product.gelu) {
          for (int64_t i = 0; i < rows; ++i) {
            gelu(tile.out + i * tile.out_stride, columns);
          }
        }
        row += rows;
      }
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
