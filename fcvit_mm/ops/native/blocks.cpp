// Blocks of FCViT, on several threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "threads.h"

namespace fcvit_mm {
namespace {

// Values that a pass reads at a time: they fit in the first-level cache, because sums over channels read them twice.
constexpr int64_t kPassValues = 8 * 1024;
// Positions that are multiplied at a time, at most.
constexpr int64_t kMostPositions = 96;

// Parts of an image, of about the same number of positions each. They do not depend on the number of threads, so sums
// over them do not either.
struct Blocks {
  int64_t positions, count;

  Blocks(int64_t of, int64_t most) : positions(of), count(divide_up(of, std::max<int64_t>(most, 1))) {}

  // Calls `compute(block, first position, number of positions)`, on several threads unless in a parallel region.
  template <typename Compute>
  void each(const Compute& compute) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t position = i * positions / count;
        compute(i, position, (i + 1) * positions / count - position);
      }
    });
  }
};

// Sums over the positions of a map of one image, by blocks.
class Sums {
 public:
  // For `blocks` blocks of at most `most` positions.
  Sums(int64_t positions, int64_t most, int64_t blocks, int64_t channels)
      : positions_(positions), channels_(channels), ones_(most, 1.f), moments_(2 * blocks), sums_(blocks * channels) {}

  // Adds a block of a map to the sums of its channels.
  void add_channels(int64_t block, const float* map, int64_t position, int64_t count) {
    float* const sums = sums_.data() + block * channels_;
    std::fill_n(sums, channels_, 0.f);
    kernels().add_weighted(map + position * channels_, ones_.data(), count, channels_, 1, sums);
  }

  // The means of channels, after add_channels of all blocks.
  void finish_channels(int64_t blocks, double* means) const {
    std::fill_n(means, channels_, 0.);
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t i = 0; i < channels_; ++i) {
        means[i] += sums_[block * channels_ + i];
      }
    }
    for (int64_t i = 0; i < channels_; ++i) {
      means[i] /= positions_;
    }
  }

  // What a block adds to mean and variance.
  void add_moments(int64_t block, const float* map, int64_t position, int64_t count, float shift) {
    moments_[2 * block] = moments_[2 * block + 1] = 0.;
    kernels().add_moments(map + position * channels_, count * channels_, shift, moments_[2 * block],
                          moments_[2 * block + 1]);
  }

  // Mean, and one over the deviation, after add_moments of all blocks with this shift.
  std::pair<float, double> finish_moments(float shift, double eps) const {
    double sum = 0., squares = 0.;
    for (size_t i = 0; i < moments_.size(); i += 2) {
      sum += moments_[i];
      squares += moments_[i + 1];
    }
    const double values = static_cast<double>(positions_) * channels_;
    const double shifted = sum / values, variance = squares / values - shifted * shifted;
    return {static_cast<float>(shifted + shift), 1 / std::sqrt(std::max(variance, 0.) + eps)};
  }

 private:
  int64_t positions_, channels_;
  std::vector<float> ones_;
  std::vector<double> moments_;
  std::vector<float> sums_;
};

// The context vector of an image: fc1 computes two candidates for each value, and fc2 reads the larger of them.
void find_context(const TokenMix& mix, int64_t channels, const float* means, float* context) {
  std::vector<float> candidates(2 * mix.context_hidden);
  Product product{};
  product.rows = means;
  product.row_stride = product.depth = channels;
  product.count = 1;
  product.panels = mix.context_fc1;
  product.columns = product.out_stride = 2 * mix.context_hidden;
  product.bias = mix.context_fc1_bias;
  product.out = candidates.data();
  kernels().multiply(product);
  for (int64_t i = 0; i < mix.context_hidden; ++i) {
    const float a = candidates[i], b = candidates[mix.context_hidden + i];
    candidates[i] = a > b || a != a ? a : b;  // keeps NaN
  }
  product.rows = candidates.data();
  product.row_stride = product.depth = mix.context_hidden;
  product.panels = mix.context_fc2;
  product.columns = product.out_stride = channels;
  product.bias = mix.context_fc2_bias;
  product.out = context;
  kernels().multiply(product);
}

// The first half of a block for one image: norm, token mixes and residual to the block's output, and the norm of that to
// `normed`, in pairs if the channel mixer is paired. `a` and `b` have as many values as the image.
void mix_tokens(const Block& block, int64_t index, float* normed, float* a, float* b) {
  const int64_t height = block.channel_mixer.height, width = block.channel_mixer.width;
  const int64_t channels = block.channel_mixer.channels, positions = height * width, heads = block.heads;
  const bool paired = block.channel_mixer.paired;
  const auto multiply = paired ? kernels().multiply_pairs : kernels().multiply;
  const Blocks passes(positions, kPassValues / channels);
  Sums sums(positions, std::max(divide_up(positions, passes.count), width), std::max(passes.count, height), channels);
  const int64_t values = positions * channels;
  const float* const x = block.x + index * values;
  float* const out = block.channel_mixer.out + index * values;
  std::vector<double> channel_means(channels);
  std::vector<float> factors(channels), shifts(channels), means(channels), scaled(channels), context(channels);
  std::vector<float> similarity(positions * heads), of_heads(heads);
  std::vector<double> squares(passes.count);

  float shift = find_shift(x, values);
  passes.each([&](int64_t part, int64_t position, int64_t count) {
    sums.add_moments(part, x, position, count, shift);
    sums.add_channels(part, x, position, count);
  });
  auto [mean, inverse] = sums.finish_moments(shift, block.eps);
  sums.finish_channels(passes.count, channel_means.data());
  for (int64_t i = 0; i < channels; ++i) {
    factors[i] = static_cast<float>(inverse * (block.norm_weight ? block.norm_weight[i] : 1.f));
    shifts[i] = block.norm_bias ? block.norm_bias[i] : 0.f;
    channel_means[i] = (channel_means[i] - mean) * factors[i] + shifts[i];
  }

  const double scale = 1 / std::sqrt(static_cast<double>(channels / heads));
  bool first = true;
  for (const TokenMix& mix : block.mixes) {
    std::copy(channel_means.begin(), channel_means.end(), means.begin());
    if (first && positions == 1) {
      // Of one position this must be its value, bit by bit: differences are divided by their deviation, which is 0.
      kernels().scale(x, mean, factors.data(), shifts.data(), 1, channels, means.data());
    }
    for (int64_t i = 0; i < channels; ++i) {
      scaled[i] = static_cast<float>(means[i] * scale);
    }
    find_context(mix, channels, means.data(), context.data());
    const Context of_image{channels, heads, scaled.data(), context.data(), mix.rescale_bias};
    // The mean over positions is the similarity of the means.
    kernels().similarities(of_image, means.data(), 1, 0.f, of_heads.data());
    const float mean_similarity =
        static_cast<float>(std::accumulate(of_heads.begin(), of_heads.end(), 0.) / heads);
    passes.each([&](int64_t part, int64_t position, int64_t count) {
      float* const own = a + position * channels;
      if (first) {
        kernels().scale(x + position * channels, mean, factors.data(), shifts.data(), count, channels, own);
      }
      squares[part] =
          kernels().similarities(of_image, own, count, mean_similarity, similarity.data() + position * heads);
    });
    first = false;
    const double freedom = std::max<double>(static_cast<double>(heads) * positions - 1, 1);
    const double deviation = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.) / freedom);
    for (int64_t head = 0; head < heads; ++head) {
      of_heads[head] = static_cast<float>(mix.rescale_weight[head] / (deviation + block.context_eps));
    }
    passes.each([&](int64_t, int64_t position, int64_t count) {
      float* const own = a + position * channels;
      kernels().add_context(of_image, own, count, similarity.data() + position * heads, of_heads.data(), own);
    });
    Convolution conv{a, nullptr, mix.taps_bias, b, height, width, channels, mix.kernel, false};
    conv.taps = mix.taps;
    conv.paired = paired;
    Product reduce{}, expand{};
    reduce.row_stride = reduce.depth = packed_size(channels, paired);
    expand.columns = expand.out_stride = channels;
    reduce.columns = reduce.out_stride = mix.hidden;
    expand.row_stride = expand.depth = packed_size(mix.hidden, paired);
    reduce.panels = mix.fc1;
    reduce.bias = mix.fc1_bias;
    expand.panels = mix.fc2;
    expand.bias = mix.fc2_bias;
    reduce.gelu = expand.gelu = true;
    // Rows that a thread convolves, and multiplies while they are in its cache; an even number, as they are convolved in
    // pairs.
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    const int64_t bands = divide_up(divide_up(height, rows_at_a_time(conv)), threads) * threads;
    const int64_t rows = divide_up(divide_up(height, bands), 2) * 2;
    at::parallel_for(0, divide_up(height, rows), 1, [&](int64_t first, int64_t last) {
      for (int64_t row = first * rows; row < std::min(last * rows, height); row += rows) {
        const int64_t end = std::min(row + rows, height);
        convolve_rows(conv, row, end);
        const int64_t stop = end * width, chunks = divide_up((end - row) * width, kMostPositions);
        const int64_t count = divide_up((end - row) * width, chunks);
        float* const between = thread_buffer(count * (mix.hidden + (paired ? reduce.depth : 0)));
        Product own_reduce = reduce, own_expand = expand;
        own_reduce.out = between;
        own_expand.rows = between;
        for (int64_t i = row * width; i < stop; i += count) {
          own_reduce.count = own_expand.count = std::min(count, stop - i);
          own_reduce.rows = own_expand.out = b + i * channels;
          if (paired) {
            float* const pairs = between + count * mix.hidden;
            kernels().round_to_pairs(own_reduce.rows, own_reduce.count, channels, pairs);
            own_reduce.rows = pairs;
          }
          multiply(own_reduce);
          if (paired) {
            kernels().round_to_pairs(between, own_reduce.count, mix.hidden, between);
          }
          multiply(own_expand);
        }
        for (int64_t i = row; i < end; ++i) {
          sums.add_channels(i, b, i * width, width);
        }
      }
    });
    sums.finish_channels(height, channel_means.data());
    std::swap(a, b);
  }

  // The residual, then the norm of it.
  const std::vector<float> ones(channels, 1.f), zeros(channels);
  const float* const of_branch = block.scale ? block.scale : ones.data();
  const int64_t few = std::min(divide_up(kShiftValues, channels), positions);
  kernels().add_scaled(x, a, of_branch, few, channels, out);
  shift = find_shift(out, few * channels);
  passes.each([&](int64_t part, int64_t position, int64_t count) {
    const int64_t start = position * channels;
    kernels().add_scaled(x + start, a + start, of_branch, count, channels, out + start);
    sums.add_moments(part, out, position, count, shift);
  });
  std::tie(mean, inverse) = sums.finish_moments(shift, block.eps);
  std::fill(factors.begin(), factors.end(), static_cast<float>(inverse));
  passes.each([&](int64_t, int64_t position, int64_t count) {
    const int64_t start = position * channels;
    float* const own = paired ? thread_buffer(count * channels) : normed + start;
    kernels().scale(out + start, mean, factors.data(), zeros.data(), count, channels, own);
    if (paired) {
      kernels().round_to_pairs(own, count, channels, normed + position * packed_size(channels, paired));
    }
  });
}

}  // namespace

void compute_block(const Block& block) {
  const Mixer& all = block.channel_mixer;
  const int64_t threads = at::get_num_threads(), values = all.height * all.width * all.channels;
  const int64_t normed_values = all.height * all.width * packed_size(all.channels, all.paired);
  const auto mix_images = [&](int64_t begin, int64_t end, float* normed, float* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      mix_tokens(block, i, normed + (i - begin) * normed_values, scratch, scratch + values);
    }
  };
  // Each thread computes images one after the other, in its cache, if there are enough images for the threads.
  const bool apart = all.batch % threads == 0 || all.batch >= 4 * threads;
  // Also the second half, unless its weights are larger than the image: then it is computed for all images together.
  if (apart && 2 * all.hidden * all.channels <= values) {
    at::parallel_for(0, all.batch, 1, [&](int64_t begin, int64_t end) {
      const at::Tensor memory = at::empty({3 * values}, at::kFloat);
      float* const normed = memory.mutable_data_ptr<float>();
      for (int64_t i = begin; i < end; ++i) {
        mix_images(i, i + 1, normed, normed + values);
        Mixer mixer = all;
        mixer.batch = 1;
        mixer.x = normed;
        mixer.out += i * values;
        mixer.shortcut = mixer.out;
        mix(mixer);
      }
    });
    return;
  }
  const at::Tensor memory = at::empty({all.batch * normed_values}, at::kFloat);
  float* const normed = memory.mutable_data_ptr<float>();
  const auto mix_range = [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = at::empty({2 * values}, at::kFloat);
    mix_images(begin, end, normed + begin * normed_values, scratch.mutable_data_ptr<float>());
  };
  if (apart) {
    at::parallel_for(0, all.batch, 1, mix_range);
  } else {
    mix_range(0, all.batch);
  }
  Mixer mixer = all;
  mixer.x = normed;
  mixer.shortcut = mixer.out;
  mix(mixer);
}

}  // namespace fcvit_mm
