// The kernels, each on one thread and without PyTorch: maps lie in memory as (B, H, W, C), float32.
#pragma once

#include <cstdint>

namespace fcvit_mm {

// Requests values for the second-level cache without waiting for them.
inline void prefetch(const float* values, int64_t count) {
  constexpr int64_t kLine = 16;
  for (int64_t i = 0; i < count; i += kLine) {
    __builtin_prefetch(values + i, 0, 2);
  }
}

// A depth-wise convolution with stride 1 and zero padding that keeps the size; followed by GELU where `gelu` is set.
struct Convolution {
  const float* x;
  const float* weight;  // (C, k, k)
  const float* bias;    // (C), or null
  float* out;
  int64_t height, width, channels, kernel;
  bool gelu;
  const float* taps;  // the weight as of pack_taps, for whole blocks of channels; or null
  bool paired;  // large kernels: `taps` are as of convolve_region_pairs
  // 3x3 kernels only: rows of the map that are in memory, or 0 for all of them. Row y is at (y + shift) % ring.
  int64_t ring, shift;
};

// The outputs of one image in these rows and columns, for a block of channels from `channel` on.
struct Region {
  int64_t image, channel, row_begin, row_end, column_begin, column_end;
};

// The gradients of a convolution's weight and bias, from that of its outputs.
struct Gradient {
  const float* x;
  const float* grad;  // of what follows the convolution
  int64_t height, width, channels, kernel;
  // 3x3 kernels only: of the convolution and GELU. The convolution is computed again, from `taps` as of pack_taps for
  // all channels, and the gradient of its outputs written to `out`. Null: `grad` is that of the convolution's outputs.
  const float* taps;
  const float* bias;  // (C), or null
  float* out;         // may be `grad`
  float* activated;   // gets the values after GELU
};

// A matrix product: each row of `out` is a row of `rows` times the packed weight, plus the bias and a row of `added`.
struct Product {
  const float* rows;  // (count, depth)
  int64_t row_stride, count, depth;
  const float* panels;   // as of pack_panels
  int64_t panel_stride;  // from a panel to the next: more than depth * block where the panels are deeper; or 0
  int64_t columns;
  const float* bias;  // (columns), or null
  float* out;         // (count, columns)
  int64_t out_stride;
  const float* added;  // (count, columns) with the strides of `out`, which it may be; or null
  bool gelu;
  // Whether the panels are likely to be outside of the cache: each is prefetched while the one before it is in use, and
  // what `next` points to, unless null, during the last.
  bool cold;
  const float* next;
};

// Sums over positions of the products of each channel of one map with each channel of another, as in the gradient of
// the weight of a 1x1 convolution. They are added to `out`, and the sums of the left map to `sums`.
struct Correlation {
  const float* left;  // (count, rows)
  int64_t left_stride, rows;
  const float* right;  // (count, columns)
  int64_t right_stride, columns, count;
  float* out;  // (rows, columns)
  int64_t out_stride;
  float* sums;  // (rows), or null
};

// Winograd's F(4x4, 3x3): 3x3 convolutions by tiles of kTile x kTile outputs, whose kTileReads x kTileReads inputs
// become as many values for each channel, one at each point. The products of channels are taken point by point.
constexpr int64_t kTile = 4, kTileReads = 6, kTilePoints = kTileReads * kTileReads;
struct InputTile {
  const float* x;      // one image
  const float* zeros;  // (channels)
  int64_t height, width, channels, row, column;  // its first row and column may lie outside of the map
};
struct OutputTile {
  float* out;  // its first value
  int64_t row_stride, channels, rows, columns;  // those inside of the map, at least one and at most kTile
};

// The global context of one image, weighted at each position by its similarity.
struct Context {
  int64_t channels, heads;
  const float* means;    // (channels), times the scale of the products
  const float* context;  // (channels)
  const float* biases;   // (heads)
};

// The kernels for processors with the same instructions. Each reads only what it packed: the formats depend on
// `lanes` and `block`.
// Memory from thread_buffer and packed weights are aligned to 64 bytes.
struct Kernels {
  const char* instructions;  // as PyTorch names them
  // Channels that a vector holds, and that are computed at a time.
  int64_t lanes, block;

  // The values of `weight` for channels from `first` on, all taps of one vector of channels after those of another's:
  // (count / lanes, k * k, lanes) with zeros beyond the last channel. `count` is a multiple of `lanes`.
  void (*pack_taps)(const Convolution& conv, int64_t first, int64_t count, float* taps);
  // Large kernels. `taps` as of pack_taps for the channels of the region; `scratch` has scratch_size() values.
  int64_t (*scratch_size)(int64_t rows, int64_t columns, int64_t kernel);
  void (*convolve_region)(const Convolution& conv, const Region& region, const float* taps, float* scratch);
  // The same with taps in bfloat16, pairs of neighbours in a row of the kernel: (count / lanes, k * (k / 2 rounded up), lanes,
  // 2) with zeros beyond the row. Null where processors have no instructions for it.
  void (*convolve_region_pairs)(const Convolution& conv, const Region& region, const float* taps, float* scratch);
  // 3x3 kernels. One or two rows of outputs of one image, for the channels from `begin` to `end`; `begin` is a multiple
  // of `lanes`. `taps` as of pack_taps for all channels; `zeros` has as many as there are channels.
  void (*convolve_3x3_rows)(const Convolution& conv, int64_t image, int64_t row, int64_t rows, int64_t begin,
                            int64_t end, const float* taps, const float* zeros);

  // Adds what one region, or one or two rows of outputs, contribute to gradients. `sums` is as of pack_taps, with a
  // further value for each channel, the bias, after the taps: (count / lanes, k * k + 1, lanes), from `region.channel`
  // or `begin` on.
  int64_t (*gradient_scratch_size)(int64_t rows, int64_t columns, int64_t kernel);
  void (*add_gradient_of_region)(const Gradient& gradient, const Region& region, float* sums, float* scratch);
  void (*add_gradient_3x3_rows)(const Gradient& gradient, int64_t image, int64_t row, int64_t rows, int64_t begin,
                                int64_t end, float* sums, const float* zeros);

  // The columns of a matrix product, which are rows of a weight `(columns, depth)`, as `multiply` reads them: panels of
  // `block` columns, each `(depth, block)`, with zeros beyond the last column.
  void (*pack_panels)(const float* weight, int64_t stride, int64_t columns, int64_t depth, float* panels);
  // The same of a weight `(depth, columns)`.
  void (*copy_panels)(const float* weight, int64_t stride, int64_t columns, int64_t depth, float* panels);
  void (*multiply)(const Product& product);
  // The same where each four bytes of `rows` and panels hold a pair: two neighbouring values of the depth as bfloat16. Null
  // where processors have no instructions for it.
  void (*multiply_pairs)(const Product& product);
  // `count` rows of `width` values as pairs: (count, width / 2 rounded up), with a zero beyond the last. `pairs` may be
  // `from`.
  void (*round_to_pairs)(const float* from, int64_t count, int64_t width, float* pairs);
  // `scratch` has correlation_scratch_size() values.
  int64_t (*correlation_scratch_size)(int64_t rows);
  void (*add_correlation)(const Correlation& correlation, float* scratch);

  // The values at the points, each (channels), lie `stride` apart.
  void (*to_points)(const InputTile& tile, float* points, int64_t stride);
  void (*from_points)(const float* points, int64_t stride, const OutputTile& tile);

  // The similarities, less `mean`, of `count` positions: (count, heads). Returns the sum of their squares.
  double (*similarities)(const Context& context, const float* x, int64_t count, float mean, float* similarity);
  // The map plus the context times `similarity * factors + biases`.
  void (*add_context)(const Context& context, const float* x, int64_t count, const float* similarity,
                      const float* factors, float* out);
  // Adds the sum over `count` positions of the map, weighted by position and head: (count, heads) weights, (channels)
  // sums.
  void (*add_weighted)(const float* x, const float* weights, int64_t count, int64_t channels, int64_t heads,
                       float* sums);
  // x + branch * scale, for `count` positions.
  void (*add_scaled)(const float* x, const float* branch, const float* scale, int64_t count, int64_t channels,
                     float* out);
  // Adds the sums of `count` values less `shift`, and of the squares of these.
  void (*add_moments)(const float* x, int64_t count, float shift, double& sum, double& squares);
  // (x - mean) * scale + bias, a scale and a bias for each channel, for `count` positions.
  void (*scale)(const float* x, float mean, const float* scale, const float* bias, int64_t count, int64_t channels,
                float* out);

  // GELU of `count` values in place.
  void (*gelu)(float* x, int64_t count);
  // `x` becomes the derivative of GELU there, times `grad`.
  void (*gelu_gradient)(float* x, const float* grad, int64_t count);
};

// Whether the compiler knows instructions for bfloat16: GCC from version 10 on.
#define COMPILES_PAIRS __has_include(<avx512bf16intrin.h>)

// Functions that fill the table.
namespace avx2 {
void set_convolutions(Kernels& kernels);
void set_products(Kernels& kernels);
void set_winograd(Kernels& kernels);
void set_maps(Kernels& kernels);
}  // namespace avx2
namespace avx512 {
void set_convolutions(Kernels& kernels);
void set_products(Kernels& kernels);
void set_winograd(Kernels& kernels);
}  // namespace avx512
namespace avx512_bf16 {
void set_pairs(Kernels& kernels);
}  // namespace avx512_bf16

}  // namespace fcvit_mm
