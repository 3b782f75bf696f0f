// 1x1 convolutions, bottlenecks and channel mixers, on several threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <numeric>

#include "threads.h"

namespace fcvit_mm {
namespace {

// Values of a row that are read at a time: see the kernel.
constexpr int64_t kBlockDepth = 256;
// Rows for which the two products of a bottleneck are computed at a time.
constexpr int64_t kRowsTwice = 96;
// Expanded channels that a channel mixer computes at a time: the minimum, and the maximum in blocks, because processors
// with AVX-512, whose blocks are larger, have twice the second-level cache.
constexpr int64_t kFewestHidden = 64, kMostHiddenBlocks = 8;
// Rows of the sums of products of two maps' channels that a thread computes at a time.
constexpr int64_t kCorrelationRows = 256;
// Positions for each thread up to which channel mixers divide expanded channels among threads.
constexpr int64_t kFewPositions = 512;
// Rows of a map, as a matrix, that are not divided further.
constexpr int64_t kFewestRows = 24;

}  // namespace

// Products of a 1x1 convolution. A thread computes a group of columns, whose weight it packs, for one block of rows
// after the other; both are parts of its second-level cache.
void multiply_all(const Product& all, const Weight& weight) {
  const int64_t depth = std::max<int64_t>(all.depth, 1), threads = at::get_num_threads();
  const int64_t fitting = std::max(kGroupValues / depth / kernels().block * kernels().block, kernels().block);
  int64_t width = std::min(fitting, divide_up(all.columns, kernels().block) * kernels().block);
  int64_t rows = std::min(divide_up(kBlockValues, std::min(depth, kBlockDepth)), all.count);
  int64_t groups = divide_up(all.columns, width), blocks = divide_up(all.count, rows);
  // As many parts for each thread: of the rows if there are enough of them, else of the columns.
  if (blocks >= threads) {
    blocks = divide_up(blocks, threads) * threads;
  } else if (groups % threads) {
    groups = std::min(divide_up(groups, threads) * threads, divide_up(all.columns, kernels().block));
    if (groups < threads) {
      blocks = std::min(divide_up(threads, groups), divide_up(all.count, kFewestRows));
    }
  }
  rows = divide_up(all.count, blocks);
  width = divide_up(divide_up(all.columns, groups), kernels().block) * kernels().block;
  groups = divide_up(all.columns, width);
  blocks = divide_up(all.count, rows);

  at::parallel_for(0, groups * blocks, 1, [&](int64_t begin, int64_t end) {
    float* const panels = weight.packed ? nullptr : thread_buffer(width * depth);
    int64_t packed = -1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % blocks * rows, group = i / blocks, column = group * width;
      Product product = all;
      product.columns = std::min(width, all.columns - column);
      if (!weight.packed && group != packed) {
        if (weight.turned) {
          kernels().copy_panels(weight.values + column, weight.stride, product.columns, all.depth, panels);
        } else {
          kernels().pack_panels(weight.values + column * weight.stride, weight.stride, product.columns, all.depth, panels);
        }
        packed = group;
      }
      product.panels = weight.packed ? weight.values + column * all.depth : panels;
      product.rows += row * all.row_stride;
      product.count = std::min(rows, all.count - row);
      product.out += row * all.out_stride + column;
      product.bias = all.bias ? all.bias + column : nullptr;
      kernels().multiply(product);
    }
  });
}

// The gradients of the weight and the bias of a 1x1 convolution. `all.out` and `all.sums` hold zeros. Threads divide the
// rows of the sums if there are many, else the columns: the columns' map is read again for each part of the rows.
void correlate(const Correlation& all) {
  const int64_t threads = at::get_num_threads();
  int64_t row_parts = divide_up(all.rows, kCorrelationRows);
  int64_t column_parts = 1;
  if (row_parts >= threads) {
    row_parts = divide_up(row_parts, threads) * threads;
  } else {
    column_parts = std::min(threads, divide_up(all.columns, kernels().block));
    row_parts = std::max(row_parts, std::min(divide_up(threads, column_parts), divide_up(all.rows, kFewestRows)));
  }
  const int64_t rows = divide_up(all.rows, row_parts);
  const int64_t columns = divide_up(divide_up(all.columns, column_parts), kernels().block) * kernels().block;
  row_parts = divide_up(all.rows, rows);
  column_parts = divide_up(all.columns, columns);
  at::parallel_for(0, row_parts * column_parts, 1, [&](int64_t begin, int64_t end) {
    float* scratch = thread_buffer(kernels().correlation_scratch_size(rows));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / column_parts * rows, column = i % column_parts * columns;
      Correlation part = all;
      part.left += row;
      part.rows = std::min(rows, all.rows - row);
      part.right += column;
      part.columns = std::min(columns, all.columns - column);
      part.out += row * all.out_stride + column;
      part.sums = column ? nullptr : all.sums + row;
      kernels().add_correlation(part, scratch);
    }
  });
}

// Two 1x1 convolutions one after the other, for a block of rows at a time: the values between them stay in the cache.
void multiply_twice(const Product& first, const float* first_weight, const Product& second,
                    const float* second_weight, bool packed) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), first.count);
  const int64_t blocks = std::max(divide_up(first.count, kRowsTwice), threads);
  const int64_t rows = divide_up(first.count, blocks);
  at::parallel_for(0, divide_up(first.count, rows), 1, [&](int64_t begin, int64_t end) {
    const auto size = [](const Product& product) {
      return divide_up(product.columns, kernels().block) * kernels().block * product.depth;
    };
    float* const between = thread_buffer(rows * first.columns + kernels().block + (packed ? 0 : size(first) + size(second)));
    Product own_first = first, own_second = second;
    own_first.panels = first_weight;
    own_second.panels = second_weight;
    if (!packed) {
      float* const panels = between + divide_up(rows * first.columns, kernels().block) * kernels().block;
      kernels().pack_panels(first_weight, first.depth, first.columns, first.depth, panels);
      kernels().pack_panels(second_weight, second.depth, second.columns, second.depth, panels + size(first));
      own_first.panels = panels;
      own_second.panels = panels + size(first);
    }
    own_first.out = between;
    own_second.rows = between;
    for (int64_t row = begin * rows; row < std::min(end * rows, first.count); row += rows) {
      own_first.rows = first.rows + row * first.row_stride;
      own_second.out = second.out + row * second.out_stride;
      own_first.count = own_second.count = std::min(rows, first.count - row);
      kernels().multiply(own_first);
      kernels().multiply(own_second);
    }
  });
}

namespace {

// What some of the expanded channels add to the output rows `begin` to `end` of one image: a few rows at a time, whose
// expanded values stay in the cache. Those that the next rows need too are kept.
struct MixerPart {
  int64_t first, count;  // of the expanded channels
  int64_t rows;          // at a time
  const float *expand, *taps, *reduce, *zeros;  // packed
  int64_t reduce_stride;                        // from a panel of `reduce` to the next
  float* expanded;                              // the last rows + 2 rows of the map
  float* convolved;                             // rows of it; behind `expanded` in memory
  float* out;         // (batch, height, width, channels)
  const float* bias;   // (channels), or null
  const float* added;  // a map, which `out` may be, or null
  bool cold;           // as of Product, with `expand` of the next part
  const float* next;
};

void mix_rows(const Mixer& mixer, const MixerPart& part, int64_t image, int64_t begin, int64_t end) {
  const int64_t depth = packed_size(mixer.channels, mixer.paired);
  const int64_t row_size = mixer.width * part.count, map_row = mixer.width * mixer.channels;
  const int64_t start = image * mixer.height * map_row;
  const float* const x = mixer.x + image * mixer.height * mixer.width * depth;
  const auto multiply = mixer.paired ? kernels().multiply_pairs : kernels().multiply;
  // `expanded` is a ring buffer. The first group of rows ends at its end, so only the last group can be split there.
  const int64_t ring = part.rows + 2;
  int64_t expanded = std::max<int64_t>(begin - 1, 0);  // the next row
  const int64_t shift = ring * mixer.height - std::min(std::min(begin + part.rows, end) + 1, mixer.height);
  for (int64_t row = begin; row < end; row += part.rows) {
    const int64_t stop = std::min(row + part.rows, end);
    const int64_t bottom = std::min(stop + 1, mixer.height);
    Product product{};
    product.row_stride = product.depth = depth;
    product.panels = part.expand;
    product.columns = product.out_stride = part.count;
    product.bias = mixer.expand_bias + part.first;
    product.cold = part.cold && row == begin;
    product.next = part.reduce;
    while (expanded < bottom) {
      const int64_t place = (expanded + shift) % ring, rows = std::min(bottom - expanded, ring - place);
      product.rows = x + expanded * mixer.width * depth;
      product.count = rows * mixer.width;
      product.out = part.expanded + place * row_size;
      multiply(product);
      expanded += rows;
    }

    Convolution conv{part.expanded, nullptr,     mixer.taps_bias + part.first, part.convolved - row * row_size,
                     mixer.height,  mixer.width, part.count,                   3,
                     true,          nullptr,     false,                        ring,
                     shift};
    for (int64_t i = row; i < stop; i += 2) {
      kernels().convolve_3x3_rows(conv, 0, i, std::min<int64_t>(stop - i, 2), 0, part.count, part.taps, part.zeros);
    }

    product.rows = part.convolved;
    product.row_stride = product.depth = packed_size(part.count, mixer.paired);
    product.count = (stop - row) * mixer.width;
    if (mixer.paired) {
      kernels().round_to_pairs(part.convolved, product.count, part.count, part.convolved);
    }
    product.panels = part.reduce;
    product.panel_stride = part.reduce_stride;
    product.columns = product.out_stride = mixer.channels;
    product.bias = part.bias;
    product.out = part.out + start + row * map_row;
    product.added = part.added ? part.added + start + row * map_row : nullptr;
    product.next = part.next;
    multiply(product);
  }
}

// What the expanded channels `first` to `last` add to the bands of rows `begin` to `end`, with `bands` for each image.
struct MixerShare {
  int64_t begin, end, bands;
  int64_t first, last;
  float* out;
  const float *bias, *added;  // each may be null
};

void mix_share(const Mixer& mixer, const MixerShare& share) {
  const int64_t wanted = kGroupValues / mixer.channels / kernels().block * kernels().block;
  const int64_t most = std::min(kMostHiddenBlocks * kernels().block, share.last - share.first);
  const int64_t width = std::min(std::max(wanted, kFewestHidden), most);
  const int64_t padded = divide_up(width, kernels().block) * kernels().block;
  const int64_t fitting = kBlockValues / (mixer.width * width) - 2;
  const int64_t rows = std::min(std::max<int64_t>(fitting / 2 * 2, 2), mixer.height);
  const int64_t row_size = mixer.width * width;
  const int64_t own = !mixer.packed;
  const int64_t sizes[] = {own * padded * mixer.channels,
                           own * divide_up(mixer.channels, kernels().block) * kernels().block * width,
                           padded * 9, padded, (rows + 2) * row_size, rows * row_size};
  float* parts[7] = {thread_buffer(std::accumulate(std::begin(sizes), std::end(sizes), int64_t{16 * 6}))};
  for (int i = 0; i < 6; ++i) {
    parts[i + 1] = parts[i] + divide_up(sizes[i], 16) * 16;
  }
  std::fill(parts[3], parts[4], 0.f);
  MixerPart part{0,        0, rows,     parts[0], parts[2],  parts[1],
                 parts[3], 0, parts[4], parts[5], share.out, share.bias, share.added, false, nullptr};
  const Convolution weights{nullptr, mixer.taps, nullptr, nullptr, 0, 0, mixer.hidden, 3, true};
  // Expanded channels change slowest: their weights are packed once.
  for (part.first = share.first; part.first < share.last; part.first += width) {
    part.count = std::min(width, share.last - part.first);
    const int64_t depth = packed_size(mixer.channels, mixer.paired);
    if (mixer.packed) {
      part.expand = mixer.expand + part.first * depth;
      part.reduce = mixer.reduce + packed_size(part.first, mixer.paired) * kernels().block;
      part.reduce_stride = packed_size(mixer.hidden, mixer.paired) * kernels().block;
    } else {
      kernels().pack_panels(mixer.expand + part.first * mixer.channels, mixer.channels, part.count, mixer.channels,
                        parts[0]);
      kernels().pack_panels(mixer.reduce + part.first, mixer.hidden, mixer.channels, part.count, parts[1]);
    }
    if (mixer.packed) {
      part.taps = mixer.taps + part.first * 9;
    } else {
      kernels().pack_taps(weights, part.first, divide_up(part.count, kernels().lanes) * kernels().lanes, parts[2]);
    }
    part.next = part.first + width < share.last ? mixer.expand + (part.first + width) * depth : nullptr;
    for (int64_t i = share.begin; i < share.end; ++i) {
      part.cold = mixer.packed && i == share.begin;
      const int64_t band = i % share.bands;
      mix_rows(mixer, part, i / share.bands, band * mixer.height / share.bands,
               (band + 1) * mixer.height / share.bands);
    }
    part.bias = nullptr;
    part.added = part.out;
  }
}

}  // namespace

void mix(const Mixer& mixer) {
  const int64_t threads = at::get_num_threads(), positions = mixer.batch * mixer.height * mixer.width;
  // Not inside a parallel region, where there are no further threads.
  const bool divide = mixer.batch % threads && mixer.batch < 4 * threads && !at::in_parallel_region();
  if (divide && positions <= kFewPositions * threads && mixer.hidden >= threads * kFewestHidden) {
    // Threads divide the expanded channels: the weights are most of what is read, and rows would be computed twice.
    const int64_t size = positions * mixer.channels, block = kernels().block;
    const int64_t channels = divide_up(mixer.hidden, threads * block) * block;
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

}  // namespace fcvit_mm
