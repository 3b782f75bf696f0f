// The operators fcvit_mm_cpu::..., without gradients: those are in the Python module beside this.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Optional.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

namespace fcvit_mm {
namespace {

using at::Tensor;
using OptionalTensor = c10::optional<Tensor>;

// Values of the map that a thread copies, at most: a part of its second-level cache.
constexpr int64_t kScratchValues = 64 * 1024;
// Columns of a region, at most: wide maps would have regions of few rows, of which most is copied for their neighbours.
constexpr int64_t kRegionColumns = 64;
// Regions for each thread, at least, where rows suffice.
constexpr int64_t kRegionsPerThread = 2;
// Channels that the 3x3 kernel computes at a time: the values that it reads again must stay in the first-level cache.
constexpr int64_t kChannels3x3 = 256;
// The same for the gradient of its weight, which has more to keep there.
constexpr int64_t kGradientChannels3x3 = 128;
// Parts of a map, each with sums of its own, times groups of channels: enough for the threads, but not more sums than
// values.
constexpr int64_t kGradientShares = 64;

// Values of a packed weight, and of rows of a map, that a thread multiplies at a time: parts of its second-level cache.
constexpr int64_t kGroupValues = 32 * 1024;
constexpr int64_t kBlockValues = 32 * 1024;
// Values of a row that are read at a time: see the kernel.
constexpr int64_t kBlockDepth = 256;
// Rows that are multiplied twice at a time.
constexpr int64_t kRowsTwice = 96;
// Expanded channels that a channel mixer computes at a time.
constexpr int64_t kFewestHidden = 64, kMostHidden = 128;
// Rows of the sums of products of two maps' channels that a thread computes at a time.
constexpr int64_t kCorrelationRows = 256;
// Positions for each thread up to which channel mixers divide expanded channels among threads.
constexpr int64_t kFewPositions = 512;
// Tiles of a 3x3 convolution that are transformed and multiplied at a time, and parts of the products for each thread.
constexpr int64_t kTilesAtOnce = 96, kPartsPerThread = 8;
// Rows of a map, as a matrix, that are not divided further.
constexpr int64_t kFewestRows = 24;

bool supported() {
  const std::string capability = at::get_cpu_capability();
  return capability == "AVX2" || capability == "AVX512";
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of this thread, kept for the next call.
float* thread_buffer(int64_t count) {
  thread_local std::unique_ptr<float[]> buffer;
  thread_local int64_t size = 0;
  if (size < count + 16) {
    buffer.reset(new float[count + 16]);
    size = count + 16;
  }
  void* start = buffer.get();
  size_t space = size * sizeof(float);
  return static_cast<float*>(std::align(64, count * sizeof(float), start, space));
}

void convolve_3x3(const Convolution& conv, int64_t batch) {
  const int64_t padded = divide_up(conv.channels, avx2::kLanes) * avx2::kLanes;
  std::vector<float> taps(padded * 9), zeros(padded);
  avx2::pack_taps(conv, 0, padded, taps.data());
  const int64_t pairs = divide_up(conv.height, 2), parts = divide_up(conv.channels, kChannels3x3);
  at::parallel_for(0, batch * parts * pairs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % pairs * 2, first = i / pairs % parts * kChannels3x3;
      avx2::convolve_3x3_rows(conv, i / pairs / parts, row, std::min<int64_t>(conv.height - row, 2), first,
                              std::min(first + kChannels3x3, conv.channels), taps.data(), zeros.data());
    }
  });
}

void convolve_large(const Convolution& conv, int64_t batch) {
  const int64_t kernel = conv.kernel, blocks = divide_up(conv.channels, avx2::kBlock);
  const int64_t strips = divide_up(conv.width, kRegionColumns), columns = divide_up(conv.width, strips);
  const int64_t most_rows = kScratchValues / ((columns + kernel - 1) * avx2::kBlock) - (kernel - 1);
  const int64_t regions = blocks * batch * strips, wanted = kRegionsPerThread * at::get_num_threads();
  int64_t bands = divide_up(conv.height, std::max<int64_t>(most_rows, 2 * kernel));
  bands = std::max(bands, std::min(divide_up(wanted, regions), divide_up(conv.height, 2 * kernel)));
  // An even number of rows: they are computed in pairs.
  const int64_t rows = divide_up(divide_up(conv.height, bands), 2) * 2;
  bands = divide_up(conv.height, rows);

  at::parallel_for(0, regions * bands, 1, [&](int64_t begin, int64_t end) {
    const int64_t taps_size = kernel * kernel * avx2::kBlock;
    float* taps = thread_buffer(taps_size + avx2::scratch_size(rows, columns, kernel));
    int64_t packed = -1;
    // Channels change slowest: their taps are packed once.
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i % bands, strip = i / bands % strips, image = i / bands / strips % batch;
      const int64_t block = i / bands / strips / batch;
      if (block != packed) {
        avx2::pack_taps(conv, block * avx2::kBlock, avx2::kBlock, taps);
        packed = block;
      }
      const avx2::Region region{image, block * avx2::kBlock, band * rows, std::min((band + 1) * rows, conv.height),
                                strip * columns, std::min((strip + 1) * columns, conv.width)};
      avx2::convolve_region(conv, region, taps, taps + taps_size);
    }
  });
}

// The gradients of the weight (C, k, k) and the bias (C) of a convolution. The map is divided into parts, by its size and
// not by the number of threads, whose sums are added in order: the same bits with any number of threads.
void sum_gradients(const avx2::Gradient& gradient, int64_t batch, float* of_weight, float* of_bias) {
  const int64_t kernel = gradient.kernel, values = kernel * kernel + 1;
  const int64_t width = kernel == 3 ? kGradientChannels3x3 : avx2::kBlock;
  const int64_t groups = divide_up(gradient.channels, width), padded = groups * width;
  const int64_t strips = kernel == 3 ? 1 : divide_up(gradient.width, kRegionColumns);
  const int64_t columns = divide_up(gradient.width, strips);
  int64_t rows = 2;
  if (kernel != 3) {
    const int64_t halo = (kernel - 1) * (columns + kernel - 1) * avx2::kBlock;
    const int64_t most_rows = (kScratchValues - halo) / ((2 * columns + kernel - 1) * avx2::kBlock);
    rows = divide_up(gradient.height, divide_up(gradient.height, std::max(most_rows, kernel)));
  }
  const int64_t bands = divide_up(gradient.height, rows), units = batch * strips * bands;
  const int64_t parts = std::min(units, std::max(kGradientShares / groups, int64_t{1})), size = padded * values;
  const std::unique_ptr<float[]> partial(new float[parts * size]);
  const std::vector<float> zeros(gradient.channels);

  at::parallel_for(0, parts * groups, 1, [&](int64_t begin, int64_t end) {
    float* scratch = kernel == 3 ? nullptr : thread_buffer(avx2::gradient_scratch_size(rows, columns, kernel));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, first = i / parts * width;
      float* sums = partial.get() + part * size + first * values;
      std::fill_n(sums, width * values, 0.f);
      for (int64_t unit = part * units / parts; unit < (part + 1) * units / parts; ++unit) {
        const int64_t row = unit % bands * rows, strip = unit / bands % strips, image = unit / bands / strips;
        const int64_t row_end = std::min(row + rows, gradient.height);
        if (kernel == 3) {
          avx2::add_gradient_3x3_rows(gradient, image, row, row_end - row, first,
                                      std::min(first + width, gradient.channels), sums, zeros.data());
        } else {
          const avx2::Region region{image, first, row, row_end, strip * columns,
                                    std::min((strip + 1) * columns, gradient.width)};
          avx2::add_gradient_of_region(gradient, region, sums, scratch);
        }
      }
    }
  });

  at::parallel_for(0, gradient.channels, avx2::kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const float* from = partial.get() + channel / avx2::kLanes * avx2::kLanes * values + channel % avx2::kLanes;
      for (int64_t i = 0; i < values; ++i) {
        float sum = 0.f;
        for (int64_t part = 0; part < parts; ++part) {
          sum += from[part * size + i * avx2::kLanes];
        }
        (i + 1 < values ? of_weight[channel * (values - 1) + i] : of_bias[channel]) = sum;
      }
    }
  });
}

// 3x3 convolutions with zeros around by Winograd's tiles, some at a time. Where there are enough for all threads, each
// computes its own; else they divide the tiles for the transforms, and the points and outputs for the products.
struct TiledConvolution {
  const float* x;
  const float* panels;  // (kTilePoints, outputs / kBlock rounded up, channels, kBlock)
  const float* bias;    // (outputs), or null
  float* out;
  int64_t batch, height, width, channels, outputs;
};

void convolve_tiles(const TiledConvolution& conv) {
  const int64_t down = divide_up(conv.height, avx2::kTile), across = divide_up(conv.width, avx2::kTile);
  const int64_t all = conv.batch * down * across, threads = at::get_num_threads();
  int64_t chunks = divide_up(all, kTilesAtOnce);
  const bool alone = chunks >= threads;
  if (alone) {
    chunks = divide_up(chunks, threads) * threads;
  }
  const int64_t most = divide_up(all, chunks);
  // Values at points, and tiles, are odd numbers of cache lines apart: not all in the same set of a cache.
  const auto odd_lines = [](int64_t values) { return (divide_up(values, avx2::kBlock) | 1) * avx2::kBlock; };
  const int64_t in_stride = odd_lines(conv.channels), out_stride = odd_lines(conv.outputs);
  const int64_t in_tile = odd_lines(avx2::kTilePoints * in_stride);
  const int64_t out_tile = odd_lines(avx2::kTilePoints * out_stride);
  const std::vector<float> zeros(conv.channels);
  const int64_t blocks = divide_up(conv.outputs, avx2::kBlock);
  const int64_t fitting = std::max<int64_t>(kGroupValues / conv.channels / avx2::kBlock, 1);
  const int64_t wanted = alone ? 1 : divide_up(kPartsPerThread * threads, avx2::kTilePoints);
  const int64_t width = divide_up(blocks, std::min(std::max(divide_up(blocks, fitting), wanted), blocks));
  const int64_t groups = divide_up(blocks, width);

  // `divide` calls a function for a part of a range, or for parts of it on several threads.
  const auto compute = [&](int64_t first, float* inputs, const auto& divide) {
    const int64_t count = std::min(most, all - first);
    float* const products = inputs + most * in_tile;
    divide(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tile = first + i, image = tile / across / down;
        const float* const from = conv.x + image * conv.height * conv.width * conv.channels;
        avx2::to_points({from, zeros.data(), conv.height, conv.width, conv.channels,
                         tile / across % down * avx2::kTile - 1, tile % across * avx2::kTile - 1},
                        inputs + i * in_tile, in_stride);
      }
    });
    divide(avx2::kTilePoints * groups, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / groups, block = i % groups * width;
        avx2::Product product{};
        product.rows = inputs + point * in_stride;
        product.row_stride = in_tile;
        product.depth = conv.channels;
        product.count = count;
        product.panels = conv.panels + (point * blocks + block) * conv.channels * avx2::kBlock;
        product.columns = std::min(width * avx2::kBlock, conv.outputs - block * avx2::kBlock);
        // What is at the point (1, 1) goes to all outputs of a tile alike.
        product.bias = conv.bias && point == avx2::kTileReads + 1 ? conv.bias + block * avx2::kBlock : nullptr;
        product.out = products + point * out_stride + block * avx2::kBlock;
        product.out_stride = out_tile;
        avx2::multiply(product);
      }
    });
    divide(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tile = first + i, image = tile / across / down;
        const int64_t row = tile / across % down * avx2::kTile, column = tile % across * avx2::kTile;
        float* const out = conv.out + ((image * conv.height + row) * conv.width + column) * conv.outputs;
        avx2::from_points(products + i * out_tile, out_stride,
                          {out, conv.width * conv.outputs, conv.outputs, std::min(avx2::kTile, conv.height - row),
                           std::min(avx2::kTile, conv.width - column)});
      }
    });
  };

  const int64_t size = most * (in_tile + out_tile);
  if (alone) {
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      const Tensor memory = at::empty({size}, at::kFloat);
      for (int64_t i = begin; i < end && i * most < all; ++i) {
        compute(i * most, memory.mutable_data_ptr<float>(),
                [](int64_t count, const auto& function) { function(0, count); });
      }
    });
  } else {
    const Tensor memory = at::empty({size}, at::kFloat);
    for (int64_t i = 0; i < chunks; ++i) {
      compute(i * most, memory.mutable_data_ptr<float>(),
            [](int64_t count, const auto& function) { at::parallel_for(0, count, 1, function); });
    }
  }
}

// The weight of a 1x1 convolution: (columns, depth), or turned: (depth, columns).
struct Weight {
  const float* values;
  int64_t stride;
  bool turned;
};

// Products of a 1x1 convolution. A thread computes a group of columns, whose weight it packs, for one block of rows
// after the other; both are parts of its second-level cache.
void multiply_all(const avx2::Product& all, const Weight& weight) {
  const int64_t depth = std::max<int64_t>(all.depth, 1), threads = at::get_num_threads();
  const int64_t fitting = std::max(kGroupValues / depth / avx2::kBlock * avx2::kBlock, avx2::kBlock);
  int64_t width = std::min(fitting, divide_up(all.columns, avx2::kBlock) * avx2::kBlock);
  int64_t rows = std::min(divide_up(kBlockValues, std::min(depth, kBlockDepth)), all.count);
  int64_t groups = divide_up(all.columns, width), blocks = divide_up(all.count, rows);
  // As many parts for each thread: of the rows if there are enough of them, else of the columns.
  if (blocks >= threads) {
    blocks = divide_up(blocks, threads) * threads;
  } else if (groups % threads) {
    groups = std::min(divide_up(groups, threads) * threads, divide_up(all.columns, avx2::kBlock));
    if (groups < threads) {
      blocks = std::min(divide_up(threads, groups), divide_up(all.count, kFewestRows));
    }
  }
  rows = divide_up(all.count, blocks);
  width = divide_up(divide_up(all.columns, groups), avx2::kBlock) * avx2::kBlock;
  groups = divide_up(all.columns, width);
  blocks = divide_up(all.count, rows);

  at::parallel_for(0, groups * blocks, 1, [&](int64_t begin, int64_t end) {
    float* panels = thread_buffer(width * depth);
    int64_t packed = -1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % blocks * rows, group = i / blocks, column = group * width;
      avx2::Product product = all;
      product.columns = std::min(width, all.columns - column);
      if (group != packed) {
        if (weight.turned) {
          avx2::copy_panels(weight.values + column, weight.stride, product.columns, all.depth, panels);
        } else {
          avx2::pack_panels(weight.values + column * weight.stride, weight.stride, product.columns, all.depth, panels);
        }
        packed = group;
      }
      product.panels = panels;
      product.rows += row * all.row_stride;
      product.count = std::min(rows, all.count - row);
      product.out += row * all.out_stride + column;
      product.bias = all.bias ? all.bias + column : nullptr;
      avx2::multiply(product);
    }
  });
}

// The gradients of the weight and the bias of a 1x1 convolution. `all.out` and `all.sums` hold zeros. Threads divide the
// rows of the sums if there are many, else the columns: the columns' map is read again for each part of the rows.
void correlate(const avx2::Correlation& all) {
  const int64_t threads = at::get_num_threads();
  int64_t row_parts = divide_up(all.rows, kCorrelationRows);
  int64_t column_parts = 1;
  if (row_parts >= threads) {
    row_parts = divide_up(row_parts, threads) * threads;
  } else {
    column_parts = std::min(threads, divide_up(all.columns, avx2::kBlock));
    row_parts = std::max(row_parts, std::min(divide_up(threads, column_parts), divide_up(all.rows, kFewestRows)));
  }
  const int64_t rows = divide_up(all.rows, row_parts);
  const int64_t columns = divide_up(divide_up(all.columns, column_parts), avx2::kBlock) * avx2::kBlock;
  row_parts = divide_up(all.rows, rows);
  column_parts = divide_up(all.columns, columns);
  at::parallel_for(0, row_parts * column_parts, 1, [&](int64_t begin, int64_t end) {
    float* scratch = thread_buffer(avx2::correlation_scratch_size(rows));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / column_parts * rows, column = i % column_parts * columns;
      avx2::Correlation part = all;
      part.left += row;
      part.rows = std::min(rows, all.rows - row);
      part.right += column;
      part.columns = std::min(columns, all.columns - column);
      part.out += row * all.out_stride + column;
      part.sums = column ? nullptr : all.sums + row;
      avx2::add_correlation(part, scratch);
    }
  });
}

// The global context of a batch: similarities and their deviation, then the weighed context, each in one pass.
struct ContextOfBatch {
  const float* x;
  float* out;
  int64_t batch, positions, channels, heads;
  const float *means, *context;    // (batch, channels)
  const float *weights, *biases;  // (heads)
  double eps;
};

void add_contexts(const ContextOfBatch& all) {
  const int64_t channels = all.channels, heads = all.heads;
  // Blocks do not depend on the number of threads, nor do the sums of squares.
  const int64_t rows = std::max<int64_t>(kBlockValues / channels, 1), blocks = divide_up(all.positions, rows);
  const double scale = 1 / std::sqrt(static_cast<double>(channels / heads));
  std::vector<float> scaled(all.batch * channels), means(all.batch), factors(all.batch * heads);
  std::vector<double> squares(all.batch * blocks);
  std::unique_ptr<float[]> similarity(new float[all.batch * all.positions * heads]);
  for (int64_t image = 0; image < all.batch; ++image) {
    const float* own = all.means + image * channels;
    float* const own_scaled = scaled.data() + image * channels;
    std::transform(own, own + channels, own_scaled, [&](float value) { return static_cast<float>(value * scale); });
    // The mean over positions is the similarity of the means, computed as that of a position: a lone one has no other.
    const avx2::Context context{channels, heads, own_scaled, nullptr, nullptr};
    float* const of_means = factors.data() + image * heads;
    avx2::similarities(context, own, 1, 0.f, of_means);
    means[image] = static_cast<float>(std::accumulate(of_means, of_means + heads, 0.) / heads);
  }
  const auto for_blocks = [&](const auto& compute) {
    at::parallel_for(0, all.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / blocks, row = i % blocks * rows;
        const avx2::Context context{channels, heads, scaled.data() + image * channels, all.context + image * channels,
                                    all.biases};
        compute(i, image, context, std::min(rows, all.positions - row), image * all.positions + row);
      }
    });
  };
  for_blocks([&](int64_t i, int64_t image, const avx2::Context& context, int64_t count, int64_t position) {
    squares[i] = avx2::similarities(context, all.x + position * channels, count, means[image],
                                    similarity.get() + position * heads);
  });
  for (int64_t image = 0; image < all.batch; ++image) {
    const double* first = squares.data() + image * blocks;
    const double freedom = std::max<double>(static_cast<double>(heads) * all.positions - 1, 1);
    const double deviation = std::sqrt(std::accumulate(first, first + blocks, 0.) / freedom);
    for (int64_t head = 0; head < heads; ++head) {
      factors[image * heads + head] = static_cast<float>(all.weights[head] / (deviation + all.eps));
    }
  }
  for_blocks([&](int64_t, int64_t image, const avx2::Context& context, int64_t count, int64_t position) {
    avx2::add_context(context, all.x + position * channels, count, similarity.get() + position * heads,
                      factors.data() + image * heads, all.out + position * channels);
  });
}

// Two 1x1 convolutions one after the other, for a block of rows at a time: what is between them stays in the cache.
void multiply_twice(const avx2::Product& first, const float* first_weight, const avx2::Product& second,
                    const float* second_weight) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), first.count);
  const int64_t blocks = std::max(divide_up(first.count, kRowsTwice), threads);
  const int64_t rows = divide_up(first.count, blocks);
  at::parallel_for(0, divide_up(first.count, rows), 1, [&](int64_t begin, int64_t end) {
    const auto size = [](const avx2::Product& product) {
      return divide_up(product.columns, avx2::kBlock) * avx2::kBlock * product.depth;
    };
    float* first_panels = thread_buffer(size(first) + size(second) + rows * first.columns);
    float* second_panels = first_panels + size(first);
    float* between = second_panels + size(second);
    avx2::pack_panels(first_weight, first.depth, first.columns, first.depth, first_panels);
    avx2::pack_panels(second_weight, second.depth, second.columns, second.depth, second_panels);
    for (int64_t i = begin; i < end; ++i) {
      avx2::Product product = first;
      product.panels = first_panels;
      product.rows += i * rows * first.row_stride;
      product.count = std::min(rows, first.count - i * rows);
      product.out = between;
      avx2::multiply(product);
      const int64_t count = product.count;
      product = second;
      product.panels = second_panels;
      product.rows = between;
      product.count = count;
      product.out += i * rows * second.out_stride;
      avx2::multiply(product);
    }
  });
}

// Channel mixers: 1x1 convolution to more channels, 3x3 depth-wise convolution, GELU, 1x1 convolution back.
struct Mixer {
  const float* x;
  float* out;
  int64_t batch, height, width, channels, hidden;
  const float *expand, *expand_bias;  // (hidden, channels)
  const float *taps, *taps_bias;      // (hidden, 3, 3)
  const float *reduce, *reduce_bias;  // (channels, hidden)
  const float* shortcut;              // a map to add, or null
};

// The output rows of one image from `begin` to `end`, as far as some of the expanded channels go: a few rows at a time,
// whose expanded values stay in the cache. Those that the next rows need, too, are kept.
struct MixerPart {
  int64_t first, count;  // of the expanded channels
  int64_t rows;          // at a time
  const float *expand, *taps, *reduce, *zeros;  // packed
  float* expanded;                              // rows + 2 rows of the map
  float* convolved;                             // rows of it; behind `expanded` in memory
  float* out;         // (batch, height, width, channels)
  const float* bias;   // (channels), or null
  const float* added;  // a map, which `out` may be, or null
};

void mix_rows(const Mixer& mixer, const MixerPart& part, int64_t image, int64_t begin, int64_t end) {
  const int64_t row_size = mixer.width * part.count, map_row = mixer.width * mixer.channels;
  const int64_t start = image * mixer.height * map_row;
  int64_t kept_from = std::max<int64_t>(begin - 1, 0), kept_to = kept_from;  // rows in `expanded`
  for (int64_t row = begin; row < end; row += part.rows) {
    const int64_t stop = std::min(row + part.rows, end);
    const int64_t top = std::max<int64_t>(row - 1, 0), bottom = std::min(stop + 1, mixer.height);
    std::memmove(part.expanded, part.expanded + (top - kept_from) * row_size,
                 (kept_to - top) * row_size * sizeof(float));
    avx2::Product product{};
    product.rows = mixer.x + start + kept_to * map_row;
    product.row_stride = product.depth = mixer.channels;
    product.count = (bottom - kept_to) * mixer.width;
    product.panels = part.expand;
    product.columns = product.out_stride = part.count;
    product.bias = mixer.expand_bias + part.first;
    product.out = part.expanded + (kept_to - top) * row_size;
    avx2::multiply(product);
    kept_from = top;
    kept_to = bottom;

    // Row 0 of this map is `top`; what is above or below it is outside of the whole map, too.
    Convolution conv{part.expanded, nullptr,      mixer.taps_bias + part.first, part.convolved - (row - top) * row_size,
                     bottom - top,  mixer.width, part.count,                   3,
                     true};
    for (int64_t i = row; i < stop; i += 2) {
      avx2::convolve_3x3_rows(conv, 0, i - top, std::min<int64_t>(stop - i, 2), 0, part.count, part.taps, part.zeros);
    }

    product.rows = part.convolved;
    product.row_stride = product.depth = part.count;
    product.count = (stop - row) * mixer.width;
    product.panels = part.reduce;
    product.columns = product.out_stride = mixer.channels;
    product.bias = part.bias;
    product.out = part.out + start + row * map_row;
    product.added = part.added ? part.added + start + row * map_row : nullptr;
    avx2::multiply(product);
  }
}

// The images and rows `begin` to `end`, each image in so many bands, as far as the expanded channels in a range go.
struct MixerShare {
  int64_t begin, end, bands;
  int64_t first, last;
  float* out;
  const float *bias, *added;  // each may be null
};

void mix_share(const Mixer& mixer, const MixerShare& share) {
  const int64_t wanted = kGroupValues / mixer.channels / avx2::kBlock * avx2::kBlock;
  const int64_t width = std::min(std::min(std::max(wanted, kFewestHidden), kMostHidden), share.last - share.first);
  const int64_t padded = divide_up(width, avx2::kBlock) * avx2::kBlock;
  const int64_t fitting = kBlockValues / (mixer.width * width) - 2;
  const int64_t rows = std::min(std::max<int64_t>(fitting / 2 * 2, 2), mixer.height);
  const int64_t row_size = mixer.width * width;
  const int64_t sizes[] = {padded * mixer.channels, divide_up(mixer.channels, avx2::kBlock) * avx2::kBlock * width,
                           padded * 9, padded, (rows + 2) * row_size, rows * row_size};
  float* parts[7] = {thread_buffer(std::accumulate(std::begin(sizes), std::end(sizes), int64_t{16 * 6}))};
  for (int i = 0; i < 6; ++i) {
    parts[i + 1] = parts[i] + divide_up(sizes[i], 16) * 16;
  }
  std::fill(parts[3], parts[4], 0.f);
  MixerPart part{0,        0,        rows,     parts[0],  parts[2],   parts[1],
                 parts[3], parts[4], parts[5], share.out, share.bias, share.added};
  const Convolution weights{nullptr, mixer.taps, nullptr, nullptr, 0, 0, mixer.hidden, 3, true};
  // Expanded channels change slowest: their weights are packed once.
  for (part.first = share.first; part.first < share.last; part.first += width) {
    part.count = std::min(width, share.last - part.first);
    avx2::pack_panels(mixer.expand + part.first * mixer.channels, mixer.channels, part.count, mixer.channels, parts[0]);
    avx2::pack_panels(mixer.reduce + part.first, mixer.hidden, mixer.channels, part.count, parts[1]);
    avx2::pack_taps(weights, part.first, divide_up(part.count, avx2::kLanes) * avx2::kLanes, parts[2]);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t band = i % share.bands;
      mix_rows(mixer, part, i / share.bands, band * mixer.height / share.bands,
               (band + 1) * mixer.height / share.bands);
    }
    part.bias = nullptr;
    part.added = part.out;
  }
}

void mix(const Mixer& mixer) {
  const int64_t threads = at::get_num_threads(), positions = mixer.batch * mixer.height * mixer.width;
  const bool divide = mixer.batch % threads && mixer.batch < 4 * threads;
  if (divide && positions <= kFewPositions * threads && mixer.hidden >= threads * kFewestHidden) {
    // Threads divide the expanded channels: the weights are most of what is read, and rows would be computed twice.
    const int64_t size = positions * mixer.channels, channels = divide_up(mixer.hidden, threads * 16) * 16;
    const int64_t shares = divide_up(mixer.hidden, channels);
    const std::unique_ptr<float[]> sums(new float[(shares - 1) * size]);
    at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        mix_share(mixer, {0, mixer.batch, 1, i * channels, std::min((i + 1) * channels, mixer.hidden),
                          i ? sums.get() + (i - 1) * size : mixer.out, i ? nullptr : mixer.reduce_bias,
                          i ? nullptr : mixer.shortcut});
      }
    });
    at::parallel_for(0, size, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t share = 1; share < shares; ++share) {
        const float* from = sums.get() + (share - 1) * size;
        for (int64_t i = begin; i < end; ++i) {
          mixer.out[i] += from[i];
        }
      }
    });
    return;
  }
  // As many rows for each thread, where there are not many images.
  const int64_t bands = divide ? std::min(threads, divide_up(mixer.height, 2)) : 1;
  at::parallel_for(0, mixer.batch * bands, 1, [&](int64_t begin, int64_t end) {
    mix_share(mixer, {begin, end, bands, 0, mixer.hidden, mixer.out, mixer.reduce_bias, mixer.shortcut});
  });
}

void check_map(const Tensor& x) {
  TORCH_CHECK(supported(), "fcvit_mm_cpu: this processor has no AVX2");
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat && x.device().is_cpu(), "fcvit_mm_cpu: x is ", x.sizes(),
              " of ", x.scalar_type(), " on ", x.device(), ", expected (B, C, H, W) of float32 on cpu");
}

void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.device().is_cpu() && tensor.sizes() == shape,
              "fcvit_mm_cpu: ", name, " is ", tensor.sizes(), " of ", tensor.scalar_type(), " on ", tensor.device(),
              ", expected ", shape, " of float32 on cpu");
}

// Of a 1x1 convolution from so many channels to any number; returns that number.
int64_t check_pointwise(const char* name, const Tensor& weight, int64_t channels) {
  TORCH_CHECK(weight.dim() == 4, "fcvit_mm_cpu: ", name, " is ", weight.sizes(), ", expected (D, ", channels,
              ", 1, 1)");
  check_shape(name, weight, {weight.size(0), channels, 1, 1});
  return weight.size(0);
}

void check(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == at::kFloat && weight.device().is_cpu() &&
                  weight.size(0) == x.size(1) && weight.size(1) == 1 && weight.size(2) == weight.size(3) &&
                  weight.size(2) % 2 == 1,
              "fcvit_mm_cpu: weight is ", weight.sizes(), " of ", weight.scalar_type(), " on ", weight.device(),
              ", expected (", x.size(1), ", 1, k, k) of float32 on cpu, k odd");
  if (bias) {
    check_shape("bias", *bias, {x.size(1)});
  }
}

Tensor empty_map(const Tensor& x, int64_t channels) {
  return at::empty({x.size(0), channels, x.size(2), x.size(3)}, x.options(), at::MemoryFormat::ChannelsLast);
}

// A map of such a size, channels_last.
void check_layout(const char* name, const Tensor& out, at::IntArrayRef shape) {
  check_shape(name, out, shape);
  TORCH_CHECK(out.is_contiguous(at::MemoryFormat::ChannelsLast), "fcvit_mm_cpu: ", name, " is not channels_last");
}

Tensor& convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool gelu, Tensor& out) {
  check(x, weight, bias);
  check_layout("out", out, x.sizes());
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), taps = weight.contiguous();
  const Tensor shift = bias ? bias->contiguous() : Tensor();
  if (out.numel() == 0) {
    return out;
  }
  const Convolution conv{map.const_data_ptr<float>(), taps.const_data_ptr<float>(),
                         bias ? shift.const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>(),
                         x.size(2), x.size(3), x.size(1), weight.size(2), gelu};
  if (conv.kernel == 3) {
    convolve_3x3(conv, x.size(0));
  } else {
    convolve_large(conv, x.size(0));
  }
  return out;
}

Tensor& depthwise_conv2d_out(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Tensor& out) {
  return convolve(x, weight, bias, false, out);
}

Tensor& dwconv_gelu_out(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Tensor& out) {
  return convolve(x, weight, bias, true, out);
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  Tensor out = empty_map(x, x.size(1));
  return convolve(x, weight, bias, false, out);
}

Tensor dwconv_gelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  Tensor out = empty_map(x, x.size(1));
  return convolve(x, weight, bias, true, out);
}

// The gradient of a map with so many channels, of the size of `x`.
void check_grad(const Tensor& grad, const Tensor& x, int64_t channels) {
  check_map(x);
  check_shape("grad", grad, {x.size(0), channels, x.size(2), x.size(3)});
}

std::tuple<Tensor, Tensor> depthwise_conv2d_grad_weight(const Tensor& grad, const Tensor& x, int64_t kernel_size) {
  check_grad(grad, x, x.size(1));
  TORCH_CHECK(kernel_size > 0 && kernel_size % 2 == 1, "fcvit_mm_cpu: kernel_size is ", kernel_size, ", expected odd");
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor of_outputs = grad.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor of_weight = at::empty({x.size(1), 1, kernel_size, kernel_size}, x.options());
  Tensor of_bias = at::empty({x.size(1)}, x.options());
  if (x.numel() == 0) {
    return {of_weight.zero_(), of_bias.zero_()};
  }
  sum_gradients({map.const_data_ptr<float>(), of_outputs.const_data_ptr<float>(), x.size(2), x.size(3), x.size(1),
                 kernel_size, nullptr, nullptr, nullptr, nullptr},
                x.size(0), of_weight.mutable_data_ptr<float>(), of_bias.mutable_data_ptr<float>());
  return {of_weight, of_bias};
}

std::tuple<Tensor, Tensor> dwconv_gelu_grad_(Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const OptionalTensor& bias, Tensor& activated) {
  check(x, weight, bias);
  const int64_t channels = x.size(1);
  check_shape("weight", weight, {channels, 1, 3, 3});
  check_layout("grad", grad, x.sizes());
  check_layout("activated", activated, x.sizes());
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), kernels = weight.contiguous();
  const Tensor shift = bias ? bias->contiguous() : Tensor();
  Tensor of_weight = at::empty(weight.sizes(), x.options()), of_bias = at::empty({channels}, x.options());
  if (x.numel() == 0) {
    return {of_weight.zero_(), of_bias.zero_()};
  }
  Convolution conv{};
  conv.weight = kernels.const_data_ptr<float>();
  conv.channels = channels;
  conv.kernel = 3;
  const int64_t padded = divide_up(channels, avx2::kLanes) * avx2::kLanes;
  std::vector<float> taps(padded * 9);
  avx2::pack_taps(conv, 0, padded, taps.data());
  float* of_outputs = grad.mutable_data_ptr<float>();
  sum_gradients({map.const_data_ptr<float>(), of_outputs, x.size(2), x.size(3), channels, 3, taps.data(),
                 bias ? shift.const_data_ptr<float>() : nullptr, of_outputs, activated.mutable_data_ptr<float>()},
                x.size(0), of_weight.mutable_data_ptr<float>(), of_bias.mutable_data_ptr<float>());
  return {of_weight, of_bias};
}

std::tuple<Tensor, Tensor> pointwise_conv2d_grad_weight(const Tensor& grad, const Tensor& x) {
  TORCH_CHECK(grad.dim() == 4, "fcvit_mm_cpu: grad is ", grad.sizes(), ", expected (B, D, H, W)");
  check_grad(grad, x, grad.size(1));
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor of_outputs = grad.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor of_weight = at::zeros({grad.size(1), x.size(1), 1, 1}, x.options());
  Tensor of_bias = at::zeros({grad.size(1)}, x.options());
  if (grad.numel() == 0 || x.numel() == 0) {
    return {of_weight, grad.sum({0, 2, 3})};
  }
  avx2::Correlation all{};
  all.left = of_outputs.const_data_ptr<float>();
  all.left_stride = all.rows = grad.size(1);
  all.right = map.const_data_ptr<float>();
  all.right_stride = all.columns = all.out_stride = x.size(1);
  all.count = x.size(0) * x.size(2) * x.size(3);
  all.out = of_weight.mutable_data_ptr<float>();
  all.sums = of_bias.mutable_data_ptr<float>();
  correlate(all);
  return {of_weight, of_bias};
}

Tensor& pointwise_conv2d_out(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Tensor& out) {
  check_map(x);
  const int64_t columns = check_pointwise("weight", weight, x.size(1));
  if (bias) {
    check_shape("bias", *bias, {columns});
  }
  check_layout("out", out, {x.size(0), columns, x.size(2), x.size(3)});
  if (out.numel() == 0) {
    return out;
  }
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), matrix = weight.flatten(1);
  // A transposed view, as gradients take, is read as it is.
  const bool turned = matrix.stride(1) != 1 && matrix.stride(0) == 1;
  const Tensor rows = turned ? matrix : matrix.contiguous(), shift = bias ? bias->contiguous() : Tensor();
  avx2::Product product{};
  product.rows = map.const_data_ptr<float>();
  product.row_stride = product.depth = x.size(1);
  product.count = x.size(0) * x.size(2) * x.size(3);
  product.columns = product.out_stride = columns;
  product.bias = bias ? shift.const_data_ptr<float>() : nullptr;
  product.out = out.mutable_data_ptr<float>();
  multiply_all(product, {rows.const_data_ptr<float>(), turned ? rows.stride(1) : product.depth, turned});
  return out;
}

Tensor pointwise_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  Tensor out = empty_map(x, check_pointwise("weight", weight, x.size(1)));
  return pointwise_conv2d_out(x, weight, bias, out);
}

Tensor bottleneck(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                  const Tensor& fc2_bias) {
  check_map(x);
  const int64_t hidden = check_pointwise("fc1_weight", fc1_weight, x.size(1));
  const int64_t columns = check_pointwise("fc2_weight", fc2_weight, hidden);
  check_shape("fc1_bias", fc1_bias, {hidden});
  check_shape("fc2_bias", fc2_bias, {columns});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor others[] = {fc1_weight.contiguous(), fc1_bias.contiguous(), fc2_weight.contiguous(),
                           fc2_bias.contiguous()};
  Tensor out = empty_map(x, columns);
  if (out.numel() == 0) {
    return out;
  }
  avx2::Product first{}, second{};
  first.rows = map.const_data_ptr<float>();
  first.row_stride = first.depth = x.size(1);
  first.count = x.size(0) * x.size(2) * x.size(3);
  first.columns = first.out_stride = second.row_stride = second.depth = hidden;
  first.bias = others[1].const_data_ptr<float>();
  second.columns = second.out_stride = columns;
  second.bias = others[3].const_data_ptr<float>();
  second.out = out.mutable_data_ptr<float>();
  first.gelu = second.gelu = true;
  multiply_twice(first, others[0].const_data_ptr<float>(), second, others[2].const_data_ptr<float>());
  return out;
}

Tensor channel_mixer(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& dw_weight,
                     const Tensor& dw_bias, const Tensor& fc2_weight, const Tensor& fc2_bias,
                     const OptionalTensor& shortcut) {
  check_map(x);
  const int64_t hidden = check_pointwise("fc1_weight", fc1_weight, x.size(1));
  check_shape("fc1_bias", fc1_bias, {hidden});
  check_shape("dw_weight", dw_weight, {hidden, 1, 3, 3});
  check_shape("dw_bias", dw_bias, {hidden});
  check_shape("fc2_weight", fc2_weight, {x.size(1), hidden, 1, 1});
  check_shape("fc2_bias", fc2_bias, {x.size(1)});
  if (shortcut) {
    check_shape("shortcut", *shortcut, x.sizes());
  }
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor added = shortcut ? shortcut->contiguous(at::MemoryFormat::ChannelsLast) : Tensor();
  const Tensor others[] = {fc1_weight.contiguous(), fc1_bias.contiguous(), dw_weight.contiguous(),
                           dw_bias.contiguous(), fc2_weight.contiguous(), fc2_bias.contiguous()};
  Tensor out = empty_map(x, x.size(1));
  if (out.numel() == 0) {
    return out;
  }
  if (hidden == 0) {
    out.copy_(fc2_bias.view({-1, 1, 1}));
    return shortcut ? out.add_(added) : out;
  }
  const auto values = [&](int i) { return others[i].const_data_ptr<float>(); };
  mix({map.const_data_ptr<float>(), out.mutable_data_ptr<float>(), x.size(0), x.size(2), x.size(3), x.size(1),
       hidden, values(0), values(1), values(2), values(3), values(4), values(5),
       shortcut ? added.const_data_ptr<float>() : nullptr});
  return out;
}

Tensor add_global_context(const Tensor& x, const Tensor& means, const Tensor& context, int64_t num_heads,
                          const Tensor& rescale_weight, const Tensor& rescale_bias, double eps) {
  check_map(x);
  const int64_t channels = x.size(1), unit = num_heads * avx2::kLanes;
  TORCH_CHECK(num_heads > 0 && channels % unit == 0, "fcvit_mm_cpu: x has ", channels,
              " channels, expected a multiple of ", avx2::kLanes, " for each of num_heads=", num_heads);
  check_shape("means", means, {x.size(0), channels});
  check_shape("context", context, {x.size(0), channels});
  check_shape("rescale_weight", rescale_weight, {num_heads});
  check_shape("rescale_bias", rescale_bias, {num_heads});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor others[] = {means.contiguous(), context.contiguous(), rescale_weight.contiguous(),
                           rescale_bias.contiguous()};
  Tensor out = empty_map(x, channels);
  if (out.numel() == 0) {
    return out;
  }
  const auto values = [&](int i) { return others[i].const_data_ptr<float>(); };
  add_contexts({map.const_data_ptr<float>(), out.mutable_data_ptr<float>(), x.size(0), x.size(2) * x.size(3), channels,
                num_heads, values(0), values(1), values(2), values(3), eps});
  return out;
}

Tensor winograd_conv2d(const Tensor& x, const Tensor& panels, int64_t outputs, const OptionalTensor& bias) {
  check_map(x);
  const int64_t channels = x.size(1);
  check_shape("panels", panels,
              {avx2::kTilePoints, divide_up(outputs, avx2::kBlock), channels, avx2::kBlock});
  if (bias) {
    check_shape("bias", *bias, {outputs});
  }
  const float* const values = panels.const_data_ptr<float>();
  TORCH_CHECK(panels.is_contiguous() && reinterpret_cast<uintptr_t>(values) % 32 == 0,
              "fcvit_mm_cpu: panels is not contiguous and aligned to 32 bytes");
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor added = bias ? bias->contiguous() : Tensor();
  Tensor out = empty_map(x, outputs);
  if (out.numel() == 0 || channels == 0) {
    return bias ? out.copy_(added.view({-1, 1, 1})) : out.zero_();
  }
  convolve_tiles({map.const_data_ptr<float>(), values, bias ? added.const_data_ptr<float>() : nullptr,
                  out.mutable_data_ptr<float>(), x.size(0), x.size(2), x.size(3), channels, outputs});
  return out;
}

// What the gradients of the global context are made of: products of each position and head of a map with a vector, and
// sums over positions.
int64_t check_heads(const Tensor& x, int64_t num_heads) {
  check_map(x);
  const int64_t channels = x.size(1);
  TORCH_CHECK(num_heads > 0 && channels % (num_heads * avx2::kLanes) == 0, "fcvit_mm_cpu: x has ", channels,
              " channels, expected a multiple of ", avx2::kLanes, " for each of num_heads=", num_heads);
  return x.size(2) * x.size(3);
}

// Calls `compute` with an image, the first position and how many, for blocks of positions of all images; of a map
// without values it does not.
template <typename Compute>
void for_blocks(const Tensor& x, int64_t rows, const Compute& compute) {
  const int64_t positions = x.size(2) * x.size(3), blocks = x.numel() ? divide_up(positions, rows) : 0;
  at::parallel_for(0, x.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % blocks * rows;
      compute(i / blocks, row, std::min(rows, positions - row));
    }
  });
}

int64_t rows_of_block(int64_t channels) { return std::max<int64_t>(kBlockValues / std::max<int64_t>(channels, 1), 1); }

Tensor similarities(const Tensor& x, const Tensor& vectors, int64_t num_heads) {
  const int64_t positions = check_heads(x, num_heads), channels = x.size(1);
  check_shape("vectors", vectors, {x.size(0), channels});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), own = vectors.contiguous();
  Tensor out = at::zeros({x.size(0), positions, num_heads}, x.options());
  const float *from = map.const_data_ptr<float>(), *of_vectors = own.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for_blocks(map, rows_of_block(channels), [&](int64_t image, int64_t row, int64_t count) {
    const avx2::Context context{channels, num_heads, of_vectors + image * channels, nullptr, nullptr};
    const int64_t position = image * positions + row;
    avx2::similarities(context, from + position * channels, count, 0.f, to + position * num_heads);
  });
  return out;
}

Tensor add_weighted(const Tensor& x, const Tensor& weights, const Tensor& vectors) {
  const int64_t heads = weights.size(-1), positions = check_heads(x, heads), channels = x.size(1);
  check_shape("weights", weights, {x.size(0), positions, heads});
  check_shape("vectors", vectors, {x.size(0), channels});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), own = vectors.contiguous();
  const Tensor factors = weights.contiguous();
  Tensor out = empty_map(x, channels);
  const float *from = map.const_data_ptr<float>(), *of_vectors = own.const_data_ptr<float>();
  const float* of_factors = factors.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const std::vector<float> ones(heads, 1.f), zeros(heads);
  for_blocks(map, rows_of_block(channels), [&](int64_t image, int64_t row, int64_t count) {
    const avx2::Context context{channels, heads, nullptr, of_vectors + image * channels, zeros.data()};
    const int64_t position = image * positions + row;
    avx2::add_context(context, from + position * channels, count, of_factors + position * heads, ones.data(),
                      to + position * channels);
  });
  return out;
}

Tensor weighted_sums(const Tensor& x, const Tensor& weights) {
  const int64_t heads = weights.size(-1), positions = check_heads(x, heads), channels = x.size(1);
  check_shape("weights", weights, {x.size(0), positions, heads});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), factors = weights.contiguous();
  const int64_t rows = rows_of_block(channels);
  // Sums of blocks, added in order: the same bits with any number of threads.
  Tensor sums = at::zeros({x.size(0), divide_up(positions, rows), channels}, x.options());
  const float *from = map.const_data_ptr<float>(), *of_factors = factors.const_data_ptr<float>();
  float* to = sums.mutable_data_ptr<float>();
  for_blocks(map, rows, [&](int64_t image, int64_t row, int64_t count) {
    const int64_t position = image * positions + row, block = image * sums.size(1) + row / rows;
    avx2::add_weighted(from + position * channels, of_factors + position * heads, count, channels, heads,
                      to + block * channels);
  });
  return sums.sum(1);
}

// GroupNorm of one group: statistics, then a factor and a bias for each channel. Images one after the other, while they
// are in the cache, if there are enough of them for the threads. Sums do not depend on that.
Tensor group_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  check_map(x);
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.size(2) * x.size(3);
  for (const auto& [name, vector] : {std::make_pair("weight", &weight), std::make_pair("bias", &bias)}) {
    if (*vector) {
      check_shape(name, **vector, {channels});
    }
  }
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor factors = weight ? weight->contiguous() : Tensor(), shifts = bias ? bias->contiguous() : Tensor();
  Tensor out = empty_map(x, channels);
  if (out.numel() == 0) {
    return out;
  }
  const float* const from = map.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  const float* const own_factors = weight ? factors.const_data_ptr<float>() : nullptr;
  const float* const own_shifts = bias ? shifts.const_data_ptr<float>() : nullptr;
  const int64_t size = positions * channels, rows = rows_of_block(channels);
  const int64_t blocks = divide_up(positions, rows);
  std::vector<double> sums(batch * blocks), squares(batch * blocks);
  std::vector<float> means(batch), scales(batch * channels);
  const std::vector<float> zeros(own_shifts ? 0 : channels);
  const auto add_block = [&](int64_t i) {
    const int64_t image = i / blocks, row = i % blocks * rows;
    const float* const first = from + image * size;
    avx2::add_moments(first + row * channels, std::min(rows, positions - row) * channels, *first, sums[i], squares[i]);
  };
  const auto finish_image = [&](int64_t image) {
    const double* const of_image = sums.data() + image * blocks;
    const double shifted = std::accumulate(of_image, of_image + blocks, 0.) / size;
    const double* const of_squares = squares.data() + image * blocks;
    const double variance = std::accumulate(of_squares, of_squares + blocks, 0.) / size - shifted * shifted;
    const double inverse = 1 / std::sqrt(std::max(variance, 0.) + eps);
    means[image] = static_cast<float>(shifted + from[image * size]);
    for (int64_t channel = 0; channel < channels; ++channel) {
      scales[image * channels + channel] = static_cast<float>(inverse * (own_factors ? own_factors[channel] : 1.));
    }
  };
  const auto scale_block = [&](int64_t i) {
    const int64_t image = i / blocks, row = i % blocks * rows, start = image * size + row * channels;
    avx2::scale(from + start, means[image], scales.data() + image * channels, own_shifts ? own_shifts : zeros.data(),
                std::min(rows, positions - row), channels, to + start);
  };
  const auto for_all = [](int64_t count, const auto& compute) {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        compute(i);
      }
    });
  };
  if (batch % at::get_num_threads() == 0) {
    for_all(batch, [&](int64_t image) {
      for (int64_t i = image * blocks; i < (image + 1) * blocks; ++i) {
        add_block(i);
      }
      finish_image(image);
      for (int64_t i = image * blocks; i < (image + 1) * blocks; ++i) {
        scale_block(i);
      }
    });
  } else {
    for_all(batch * blocks, add_block);
    for_all(batch, finish_image);
    for_all(batch * blocks, scale_block);
  }
  return out;
}

Tensor add_scaled(const Tensor& x, const Tensor& branch, const Tensor& scale) {
  check_map(x);
  check_shape("branch", branch, x.sizes());
  check_shape("scale", scale, {x.size(1)});
  const auto layout = at::MemoryFormat::ChannelsLast;
  const Tensor map = x.contiguous(layout), other = branch.contiguous(layout), factors = scale.contiguous();
  Tensor out = empty_map(x, x.size(1));
  if (out.numel() == 0) {
    return out;
  }
  const int64_t channels = x.size(1);
  const float *from = map.const_data_ptr<float>(), *added = other.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel() / channels, divide_up(kBlockValues, channels), [&](int64_t begin, int64_t end) {
    const int64_t start = begin * channels;
    avx2::add_scaled(from + start, added + start, factors.const_data_ptr<float>(), end - begin, channels, to + start);
  });
  return out;
}

Tensor meta(const Tensor& x, const Tensor&, const OptionalTensor&) {
  return at::empty_symint(x.sym_sizes(), x.options(), at::MemoryFormat::ChannelsLast);
}

std::tuple<Tensor, Tensor> meta_of_grad_weight(const Tensor&, const Tensor& x, int64_t kernel_size) {
  const c10::SymInt channels = x.sym_size(1);
  return {at::empty_symint({channels, 1, kernel_size, kernel_size}, x.options()),
          at::empty_symint({channels}, x.options())};
}

std::tuple<Tensor, Tensor> meta_of_gelu_grad(Tensor&, const Tensor& x, const Tensor& weight, const OptionalTensor&,
                                             Tensor&) {
  return {at::empty_symint(weight.sym_sizes(), x.options()), at::empty_symint({x.sym_size(1)}, x.options())};
}

std::tuple<Tensor, Tensor> meta_of_pointwise_grad_weight(const Tensor& grad, const Tensor& x) {
  return {at::empty_symint({grad.sym_size(1), x.sym_size(1), 1, 1}, x.options()),
          at::empty_symint({grad.sym_size(1)}, x.options())};
}

Tensor& meta_of_gelu_grad_in_place(Tensor& x, const Tensor&) { return x; }

Tensor meta_of_pointwise(const Tensor& x, const Tensor& weight, const OptionalTensor&) {
  return at::empty_symint({x.sym_size(0), weight.sym_size(0), x.sym_size(2), x.sym_size(3)}, x.options(),
                          at::MemoryFormat::ChannelsLast);
}

Tensor meta_of_winograd(const Tensor& x, const Tensor&, int64_t outputs, const OptionalTensor&) {
  return at::empty_symint({x.sym_size(0), outputs, x.sym_size(2), x.sym_size(3)}, x.options(),
                          at::MemoryFormat::ChannelsLast);
}

Tensor& meta_of_out(const Tensor&, const Tensor&, const OptionalTensor&, Tensor& out) { return out; }

Tensor meta_of_bottleneck(const Tensor& x, const Tensor&, const Tensor&, const Tensor& fc2_weight, const Tensor&) {
  return meta_of_pointwise(x, fc2_weight, {});
}

Tensor meta_of_mixer(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     const Tensor&, const OptionalTensor&) {
  return meta(x, x, {});
}

Tensor meta_of_similarities(const Tensor& x, const Tensor&, int64_t num_heads) {
  return at::empty_symint({x.sym_size(0), x.sym_size(2) * x.sym_size(3), num_heads}, x.options());
}

Tensor meta_of_sums(const Tensor& x, const Tensor&) {
  return at::empty_symint({x.sym_size(0), x.sym_size(1)}, x.options());
}

Tensor meta_of_norm(const Tensor& x, const OptionalTensor&, const OptionalTensor&, double) { return meta(x, x, {}); }

Tensor meta_of_context(const Tensor& x, const Tensor&, const Tensor&, int64_t, const Tensor&, const Tensor&, double) {
  return meta(x, x, {});
}

Tensor meta_of_scaled(const Tensor& x, const Tensor&, const Tensor&) { return meta(x, x, {}); }

Tensor& meta_in_place(Tensor& x) { return x; }

Tensor& gelu_(Tensor& x) {
  TORCH_CHECK(supported(), "fcvit_mm_cpu: this processor has no AVX2");
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_non_overlapping_and_dense(),
              "fcvit_mm_cpu: x is not a dense tensor of float32");
  float* values = x.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) { avx2::gelu(values + begin, end - begin); });
  return x;
}

// `x` becomes the gradient of what GELU is taken of, from that of its outputs.
Tensor& gelu_grad_(Tensor& x, const Tensor& grad) {
  check_map(x);
  check_layout("x", x, x.sizes());
  check_layout("grad", grad, x.sizes());
  float* values = x.mutable_data_ptr<float>();
  const float* grads = grad.const_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) {
    avx2::gelu_gradient(values + begin, grads + begin, end - begin);
  });
  return x;
}

}  // namespace

TORCH_LIBRARY(fcvit_mm_cpu, library) {
  library.def("supported() -> bool", supported);
  library.def("depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("depthwise_conv2d.out(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)");
  library.def("dwconv_gelu(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("dwconv_gelu.out(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)");
  library.def("depthwise_conv2d_grad_weight(Tensor grad, Tensor x, int kernel_size) -> (Tensor, Tensor)");
  library.def(
      "dwconv_gelu_grad_(Tensor(a!) grad, Tensor x, Tensor weight, Tensor? bias, *, Tensor(b!) activated) "
      "-> (Tensor, Tensor)");
  library.def("pointwise_conv2d_grad_weight(Tensor grad, Tensor x) -> (Tensor, Tensor)");
  library.def("gelu_grad_(Tensor(a!) x, Tensor grad) -> Tensor(a!)");
  library.def("pointwise_conv2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("pointwise_conv2d.out(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)");
  library.def("winograd_conv2d(Tensor x, Tensor panels, int outputs, Tensor? bias) -> Tensor");
  library.def(
      "bottleneck(Tensor x, Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias) -> Tensor");
  library.def(
      "channel_mixer(Tensor x, Tensor fc1_weight, Tensor fc1_bias, Tensor dw_weight, Tensor dw_bias, "
      "Tensor fc2_weight, Tensor fc2_bias, Tensor? shortcut=None) -> Tensor");
  library.def(
      "add_global_context(Tensor x, Tensor means, Tensor context, int num_heads, Tensor rescale_weight, "
      "Tensor rescale_bias, float eps) -> Tensor");
  library.def("similarities(Tensor x, Tensor vectors, int num_heads) -> Tensor");
  library.def("add_weighted(Tensor x, Tensor weights, Tensor vectors) -> Tensor");
  library.def("weighted_sums(Tensor x, Tensor weights) -> Tensor");
  library.def("group_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor");
  library.def("add_scaled(Tensor x, Tensor branch, Tensor scale) -> Tensor");
  library.def("gelu_(Tensor(a!) x) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(fcvit_mm_cpu, CPU, library) {
  library.impl("depthwise_conv2d", depthwise_conv2d);
  library.impl("depthwise_conv2d.out", depthwise_conv2d_out);
  library.impl("dwconv_gelu", dwconv_gelu);
  library.impl("dwconv_gelu.out", dwconv_gelu_out);
  library.impl("depthwise_conv2d_grad_weight", depthwise_conv2d_grad_weight);
  library.impl("dwconv_gelu_grad_", dwconv_gelu_grad_);
  library.impl("pointwise_conv2d_grad_weight", pointwise_conv2d_grad_weight);
  library.impl("gelu_grad_", gelu_grad_);
  library.impl("pointwise_conv2d", pointwise_conv2d);
  library.impl("pointwise_conv2d.out", pointwise_conv2d_out);
  library.impl("winograd_conv2d", winograd_conv2d);
  library.impl("bottleneck", bottleneck);
  library.impl("channel_mixer", channel_mixer);
  library.impl("add_global_context", add_global_context);
  library.impl("similarities", similarities);
  library.impl("add_weighted", add_weighted);
  library.impl("weighted_sums", weighted_sums);
  library.impl("group_norm", group_norm);
  library.impl("add_scaled", add_scaled);
  library.impl("gelu_", gelu_);
}

TORCH_LIBRARY_IMPL(fcvit_mm_cpu, Meta, library) {
  library.impl("depthwise_conv2d", meta);
  library.impl("depthwise_conv2d.out", meta_of_out);
  library.impl("dwconv_gelu", meta);
  library.impl("dwconv_gelu.out", meta_of_out);
  library.impl("depthwise_conv2d_grad_weight", meta_of_grad_weight);
  library.impl("dwconv_gelu_grad_", meta_of_gelu_grad);
  library.impl("pointwise_conv2d_grad_weight", meta_of_pointwise_grad_weight);
  library.impl("gelu_grad_", meta_of_gelu_grad_in_place);
  library.impl("pointwise_conv2d", meta_of_pointwise);
  library.impl("pointwise_conv2d.out", meta_of_out);
  library.impl("winograd_conv2d", meta_of_winograd);
  library.impl("bottleneck", meta_of_bottleneck);
  library.impl("channel_mixer", meta_of_mixer);
  library.impl("add_global_context", meta_of_context);
  library.impl("similarities", meta_of_similarities);
  library.impl("add_weighted", meta_of_scaled);
  library.impl("weighted_sums", meta_of_sums);
  library.impl("group_norm", meta_of_norm);
  library.impl("add_scaled", meta_of_scaled);
  library.impl("gelu_", meta_in_place);
}

}  // namespace fcvit_mm
