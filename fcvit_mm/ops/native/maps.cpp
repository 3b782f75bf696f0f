// Passes over maps on several threads, and the threads' memory.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "threads.h"

namespace fcvit_mm {

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

float find_shift(const float* x, int64_t count) {
  const int64_t first = std::min(count, kShiftValues);
  return static_cast<float>(std::accumulate(x, x + first, 0.) / first);
}

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
    // The mean over positions is the similarity of the means, computed as that of a position: of one, both are equal.
    const Context context{channels, heads, own_scaled, nullptr, nullptr};
    float* const of_means = factors.data() + image * heads;
    kernels().similarities(context, own, 1, 0.f, of_means);
    means[image] = static_cast<float>(std::accumulate(of_means, of_means + heads, 0.) / heads);
  }
  const auto for_blocks = [&](const auto& compute) {
    at::parallel_for(0, all.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / blocks, row = i % blocks * rows;
        const Context context{channels, heads, scaled.data() + image * channels, all.context + image * channels,
                                    all.biases};
        compute(i, image, context, std::min(rows, all.positions - row), image * all.positions + row);
      }
    });
  };
  for_blocks([&](int64_t i, int64_t image, const Context& context, int64_t count, int64_t position) {
    squares[i] = kernels().similarities(context, all.x + position * channels, count, means[image],
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
  for_blocks([&](int64_t, int64_t image, const Context& context, int64_t count, int64_t position) {
    kernels().add_context(context, all.x + position * channels, count, similarity.get() + position * heads,
                      factors.data() + image * heads, all.out + position * channels);
  });
}

}  // namespace fcvit_mm
