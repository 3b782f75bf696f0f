// 3x3 and depth-wise convolutions on several threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "threads.h"

namespace fcvit_mm {
namespace {

// Values of the map that a thread copies, at most: a part of its second-level cache.
constexpr int64_t kScratchValues = 64 * 1024;
// Columns of a region, at most: regions of wide maps would have few rows, and mostly rows around them would be copied.
constexpr int64_t kRegionColumns = 64;
// Regions for each thread, at least, where rows suffice.
constexpr int64_t kRegionsPerThread = 2;
// Channels that the 3x3 kernel computes at a time: the values that it reads again must stay in the first-level cache.
constexpr int64_t kChannels3x3 = 256;
// The same for the gradient of its weight, which needs more values in the cache.
constexpr int64_t kGradientChannels3x3 = 128;
// Parts of a map, each with sums of its own, times groups of channels: enough for the threads, but not more sums than
// values.
constexpr int64_t kGradientShares = 64;
// Tiles of a 3x3 convolution that are transformed and multiplied at a time, and parts of the products for each thread.
constexpr int64_t kTilesAtOnce = 96, kPartsPerThread = 8;
// Values of a cache line.
constexpr int64_t kLine = 16;

}  // namespace

void convolve_3x3(const Convolution& conv, int64_t batch) {
  const int64_t padded = divide_up(conv.channels, kernels().lanes) * kernels().lanes;
  std::vector<float> taps(padded * 9), zeros(padded);
  kernels().pack_taps(conv, 0, padded, taps.data());
  const int64_t pairs = divide_up(conv.height, 2), parts = divide_up(conv.channels, kChannels3x3);
  at::parallel_for(0, batch * parts * pairs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % pairs * 2, first = i / pairs % parts * kChannels3x3;
      kernels().convolve_3x3_rows(conv, i / pairs / parts, row, std::min<int64_t>(conv.height - row, 2), first,
                              std::min(first + kChannels3x3, conv.channels), taps.data(), zeros.data());
    }
  });
}

int64_t rows_at_a_time(const Convolution& conv) {
  const int64_t columns = divide_up(conv.width, divide_up(conv.width, kRegionColumns));
  const int64_t most = kScratchValues / ((columns + conv.kernel - 1) * kernels().block) - (conv.kernel - 1);
  return std::max<int64_t>(most, 2 * conv.kernel) / 2 * 2;
}

void convolve_large(const Convolution& conv, int64_t batch) {
  const int64_t kernel = conv.kernel, blocks = divide_up(conv.channels, kernels().block);
  const int64_t strips = divide_up(conv.width, kRegionColumns), columns = divide_up(conv.width, strips);
  const int64_t regions = blocks * batch * strips, wanted = kRegionsPerThread * at::get_num_threads();
  int64_t bands = divide_up(conv.height, rows_at_a_time(conv));
  bands = std::max(bands, std::min(divide_up(wanted, regions), divide_up(conv.height, 2 * kernel)));
  // An even number of rows: they are computed in pairs.
  const int64_t rows = divide_up(divide_up(conv.height, bands), 2) * 2;
  bands = divide_up(conv.height, rows);

  at::parallel_for(0, regions * bands, 1, [&](int64_t begin, int64_t end) {
    const int64_t taps_size = kernel * kernel * kernels().block;
    float* taps = thread_buffer(taps_size + kernels().scratch_size(rows, columns, kernel));
    int64_t packed = -1;
    // Channels change slowest: their taps are packed once.
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i % bands, strip = i / bands % strips, image = i / bands / strips % batch;
      const int64_t block = i / bands / strips / batch;
      if (block != packed) {
        kernels().pack_taps(conv, block * kernels().block, kernels().block, taps);
        packed = block;
      }
      const Region region{image, block * kernels().block, band * rows, std::min((band + 1) * rows, conv.height),
                                strip * columns, std::min((strip + 1) * columns, conv.width)};
      kernels().convolve_region(conv, region, taps, taps + taps_size);
    }
  });
}

void convolve_rows(const Convolution& conv, int64_t begin, int64_t end) {
  const int64_t strips = divide_up(conv.width, kRegionColumns), columns = divide_up(conv.width, strips);
  const int64_t taps_size = conv.kernel * packed_size(conv.kernel, conv.paired) * kernels().block;
  const auto convolve = conv.paired ? kernels().convolve_region_pairs : kernels().convolve_region;
  float* const scratch = thread_buffer(kernels().scratch_size(end - begin, columns, conv.kernel));
  for (int64_t channel = 0; channel < conv.channels; channel += kernels().block) {
    const float* const taps = conv.taps + channel / kernels().block * taps_size;
    if (channel + kernels().block < conv.channels) {
      prefetch(taps + taps_size, taps_size);
    }
    for (int64_t column = 0; column < conv.width; column += columns) {
      const Region region{0, channel, begin, end, column, std::min(column + columns, conv.width)};
      convolve(conv, region, taps, scratch);
    }
  }
}

// The gradients of the weight (C, k, k) and the bias (C) of a convolution. The map is divided into parts, by its size and
// not by the number of threads, whose sums are added in order: bitwise the same with any number of threads.
void sum_gradients(const Gradient& gradient, int64_t batch, float* of_weight, float* of_bias) {
  const int64_t kernel = gradient.kernel, values = kernel * kernel + 1;
  const int64_t width = kernel == 3 ? kGradientChannels3x3 : kernels().block;
  const int64_t groups = divide_up(gradient.channels, width), padded = groups * width;
  const int64_t strips = kernel == 3 ? 1 : divide_up(gradient.width, kRegionColumns);
  const int64_t columns = divide_up(gradient.width, strips);
  int64_t rows = 2;
  if (kernel != 3) {
    const int64_t halo = (kernel - 1) * (columns + kernel - 1) * kernels().block;
    const int64_t most_rows = (kScratchValues - halo) / ((2 * columns + kernel - 1) * kernels().block);
    rows = divide_up(gradient.height, divide_up(gradient.height, std::max(most_rows, kernel)));
  }
  const int64_t bands = divide_up(gradient.height, rows), units = batch * strips * bands;
  const int64_t parts = std::min(units, std::max(kGradientShares / groups, int64_t{1})), size = padded * values;
  const std::unique_ptr<float[]> partial(new float[parts * size]);
  const std::vector<float> zeros(gradient.channels);

  at::parallel_for(0, parts * groups, 1, [&](int64_t begin, int64_t end) {
    float* scratch = kernel == 3 ? nullptr : thread_buffer(kernels().gradient_scratch_size(rows, columns, kernel));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, first = i / parts * width;
      float* sums = partial.get() + part * size + first * values;
      std::fill_n(sums, width * values, 0.f);
      for (int64_t unit = part * units / parts; unit < (part + 1) * units / parts; ++unit) {
        const int64_t row = unit % bands * rows, strip = unit / bands % strips, image = unit / bands / strips;
        const int64_t row_end = std::min(row + rows, gradient.height);
        if (kernel == 3) {
          kernels().add_gradient_3x3_rows(gradient, image, row, row_end - row, first,
                                      std::min(first + width, gradient.channels), sums, zeros.data());
        } else {
          const Region region{image, first, row, row_end, strip * columns,
                                    std::min((strip + 1) * columns, gradient.width)};
          kernels().add_gradient_of_region(gradient, region, sums, scratch);
        }
      }
    }
  });

  at::parallel_for(0, gradient.channels, kernels().block, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const float* from = partial.get() + channel / kernels().lanes * kernels().lanes * values + channel % kernels().lanes;
      for (int64_t i = 0; i < values; ++i) {
        float sum = 0.f;
        for (int64_t part = 0; part < parts; ++part) {
          sum += from[part * size + i * kernels().lanes];
        }
        (i + 1 < values ? of_weight[channel * (values - 1) + i] : of_bias[channel]) = sum;
      }
    }
  });
}

void convolve_tiles(const TiledConvolution& conv) {
  const int64_t down = divide_up(conv.height, kTile), across = divide_up(conv.width, kTile);
  const int64_t all = conv.batch * down * across, threads = at::get_num_threads();
  int64_t chunks = divide_up(all, kTilesAtOnce);
  const bool alone = chunks >= threads;
  if (alone) {
    chunks = divide_up(chunks, threads) * threads;
  }
  const int64_t most = divide_up(all, chunks);
  // Values at points, and tiles, are odd numbers of cache lines apart: not all in the same set of a cache.
  const auto odd_lines = [](int64_t values) { return (divide_up(values, kLine) | 1) * kLine; };
  const int64_t in_stride = odd_lines(conv.channels), out_stride = odd_lines(conv.outputs);
  const int64_t in_tile = odd_lines(kTilePoints * in_stride);
  const int64_t out_tile = odd_lines(kTilePoints * out_stride);
  const std::vector<float> zeros(conv.channels);
  const int64_t blocks = divide_up(conv.outputs, kernels().block);
  const int64_t fitting = std::max<int64_t>(kGroupValues / conv.channels / kernels().block, 1);
  const int64_t wanted = alone ? 1 : divide_up(kPartsPerThread * threads, kTilePoints);
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
        kernels().to_points({from, zeros.data(), conv.height, conv.width, conv.channels,
                         tile / across % down * kTile - 1, tile % across * kTile - 1},
                        inputs + i * in_tile, in_stride);
      }
    });
    divide(kTilePoints * groups, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / groups, block = i % groups * width;
        Product product{};
        product.rows = inputs + point * in_stride;
        product.row_stride = in_tile;
        product.depth = conv.channels;
        product.count = count;
        product.panels = conv.panels + (point * blocks + block) * conv.channels * kernels().block;
        product.columns = std::min(width * kernels().block, conv.outputs - block * kernels().block);
        // The value at the point (1, 1) is added to every output of a tile, so the bias is added here.
        product.bias = conv.bias && point == kTileReads + 1 ? conv.bias + block * kernels().block : nullptr;
        product.out = products + point * out_stride + block * kernels().block;
        product.out_stride = out_tile;
        kernels().multiply(product);
      }
    });
    divide(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tile = first + i, image = tile / across / down;
        const int64_t row = tile / across % down * kTile, column = tile % across * kTile;
        float* const out = conv.out + ((image * conv.height + row) * conv.width + column) * conv.outputs;
        kernels().from_points(products + i * out_tile, out_stride,
                          {out, conv.width * conv.outputs, conv.outputs, std::min(kTile, conv.height - row),
                           std::min(kTile, conv.width - column)});
      }
    });
  };

  const int64_t size = most * (in_tile + out_tile);
  if (alone) {
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      const at::Tensor memory = at::empty({size}, at::kFloat);
      for (int64_t i = begin; i < end && i * most < all; ++i) {
        compute(i * most, memory.mutable_data_ptr<float>(),
                [](int64_t count, const auto& function) { function(0, count); });
      }
    });
  } else {
    const at::Tensor memory = at::empty({size}, at::kFloat);
    for (int64_t i = 0; i < chunks; ++i) {
      compute(i * most, memory.mutable_data_ptr<float>(),
            [](int64_t count, const auto& function) { at::parallel_for(0, count, 1, function); });
    }
  }
}

}  // namespace fcvit_mm
