// Passes over maps that memory bounds, for processors with AVX2 and FMA.
#include "vectors_avx2.h"

namespace fcvit_mm {
namespace avx2 {
namespace {

INLINE float sum_of(Vector x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

}  // namespace

double similarities(const Context& context, const float* x, int64_t count, float mean, float* similarity) {
  const int64_t width = context.channels / context.heads;
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float* means = context.means;
    float of_position = 0.f;
    for (int64_t head = 0; head < context.heads; ++head, x += width, means += width) {
      Vector sum = _mm256_mul_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(means));
      for (int64_t j = kLanes; j < width; j += kLanes) {
        sum = multiply_add(_mm256_loadu_ps(x + j), _mm256_loadu_ps(means + j), sum);
      }
      const float value = sum_of(sum) - mean;
      of_position += value * value;
      *similarity++ = value;
    }
    squares += of_position;
  }
  return squares;
}

void add_context(const Context& context, const float* x, int64_t count, const float* similarity, const float* factors,
                 float* out) {
  const int64_t width = context.channels / context.heads;
  for (int64_t i = 0; i < count; ++i) {
    const float* vector = context.context;
    for (int64_t head = 0; head < context.heads; ++head, x += width, out += width, vector += width) {
      const Vector weight = constant(*similarity++ * factors[head] + context.biases[head]);
      for (int64_t j = 0; j < width; j += kLanes) {
        _mm256_storeu_ps(out + j, multiply_add(weight, _mm256_loadu_ps(vector + j), _mm256_loadu_ps(x + j)));
      }
    }
  }
}

void add_weighted(const float* x, const float* weights, int64_t count, int64_t channels, int64_t heads, float* sums) {
  // Pairs of positions: the sums are loaded and stored half as often.
  const int64_t width = channels / heads;
  for (int64_t i = 0; i < count; i += 2, x += 2 * channels, weights += 2 * heads) {
    const bool pair = i + 1 < count;
    const float* other = pair ? x + channels : x;
    for (int64_t head = 0; head < heads; ++head) {
      const Vector a = constant(weights[head]), b = constant(pair ? weights[heads + head] : 0.f);
      for (int64_t j = head * width; j < (head + 1) * width; j += kLanes) {
        const Vector sum = multiply_add(a, _mm256_loadu_ps(x + j), _mm256_loadu_ps(sums + j));
        _mm256_storeu_ps(sums + j, pair ? multiply_add(b, _mm256_loadu_ps(other + j), sum) : sum);
      }
    }
  }
}

void add_scaled(const float* x, const float* branch, const float* scale, int64_t count, int64_t channels, float* out) {
  for (int64_t i = 0; i < count; ++i, x += channels, branch += channels, out += channels) {
    int64_t j = 0;
    for (; j + kLanes <= channels; j += kLanes) {
      const Vector product = _mm256_mul_ps(_mm256_loadu_ps(branch + j), _mm256_loadu_ps(scale + j));
      _mm256_storeu_ps(out + j, _mm256_add_ps(_mm256_loadu_ps(x + j), product));
    }
    if (j < channels) {
      const __m256i rest = first_lanes(channels - j);
      const Vector product = _mm256_mul_ps(load<true>(branch + j, rest), load<true>(scale + j, rest));
      store<true>(out + j, rest, _mm256_add_ps(load<true>(x + j, rest), product));
    }
  }
}

void add_moments(const float* x, int64_t count, float shift, double& sum, double& squares) {
  constexpr int64_t kVectors = 4, kStep = kVectors * kLanes;
  // Single precision for so many values at a time.
  constexpr int64_t kRun = 64 * kStep;
  const Vector shifts = constant(shift);
  int64_t i = 0;
  while (i + kStep <= count) {
    Vector sums[kVectors], of_squares[kVectors];
    UNROLL for (int t = 0; t < kVectors; ++t) {
      sums[t] = of_squares[t] = _mm256_setzero_ps();
    }
    for (const int64_t end = smaller(i + kRun, count - kStep + 1); i < end; i += kStep) {
      UNROLL for (int t = 0; t < kVectors; ++t) {
        const Vector value = _mm256_sub_ps(_mm256_loadu_ps(x + i + t * kLanes), shifts);
        sums[t] = _mm256_add_ps(sums[t], value);
        of_squares[t] = multiply_add(value, value, of_squares[t]);
      }
    }
    UNROLL for (int t = 0; t < kVectors; ++t) {
      sum += sum_of(sums[t]);
      squares += sum_of(of_squares[t]);
    }
  }
  for (; i < count; ++i) {
    const double value = x[i] - shift;
    sum += value;
    squares += value * value;
  }
}

void scale(const float* x, float mean, const float* scale, const float* bias, int64_t count, int64_t channels,
           float* out) {
  const Vector means = constant(mean);
  for (int64_t i = 0; i < count; ++i, x += channels, out += channels) {
    int64_t j = 0;
    for (; j + kLanes <= channels; j += kLanes) {
      const Vector value = _mm256_sub_ps(_mm256_loadu_ps(x + j), means);
      _mm256_storeu_ps(out + j, multiply_add(value, _mm256_loadu_ps(scale + j), _mm256_loadu_ps(bias + j)));
    }
    if (j < channels) {
      const __m256i rest = first_lanes(channels - j);
      const Vector value = _mm256_sub_ps(load<true>(x + j, rest), means);
      store<true>(out + j, rest, multiply_add(value, load<true>(scale + j, rest), load<true>(bias + j, rest)));
    }
  }
}

}  // namespace avx2
}  // namespace fcvit_mm

#include "vectors_avx2_end.h"
