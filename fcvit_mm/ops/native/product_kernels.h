// Matrix products, which compute 1x1 convolutions: of float32, or of pairs of bfloat16 where PAIRS is defined.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

struct ProductTile {
  const float* rows;
  int64_t row_stride, depth;  // interleaved rows need no stride
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
        sums[r][t] = add_product(value, weight[t], sums[r][t]);
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

}  // namespace
}  // namespace INSTANCE
}  // namespace fcvit_mm
