// Memory-bound passes over maps.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

INLINE float sum_of(Vector x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

double similarities(const Context& context, const float* x, int64_t count, float mean, float* similarity) {
  const int64_t width = context.channels / context.heads, whole = width / kLanes * kLanes;
  const Lanes rest = first_lanes(width - whole);
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float* means = context.means;
    float of_position = 0.f;
    for (int64_t head = 0; head < context.heads; ++head, x += width, means += width) {
      Vector sum = zero();
      for (int64_t j = 0; j < whole; j += kLanes) {
        sum = multiply_add(load(x + j), load(means + j), sum);
      }
      if (whole < width) {
        sum = multiply_add(load<true>(x + whole, rest), load<true>(means + whole, rest), sum);
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
  const int64_t width = context.channels / context.heads, whole = width / kLanes * kLanes;
  const Lanes rest = first_lanes(width - whole);
  for (int64_t i = 0; i < count; ++i) {
    const float* vector = context.context;
    for (int64_t head = 0; head < context.heads; ++head, x += width, out += width, vector += width) {
      const Vector weight = constant(*similarity++ * factors[head] + context.biases[head]);
      for (int64_t j = 0; j < whole; j += kLanes) {
        store(out + j, multiply_add(weight, load(vector + j), load(x + j)));
      }
      if (whole < width) {
        const Vector value = load<true>(x + whole, rest);
        store<true>(out + whole, rest, multiply_add(weight, load<true>(vector + whole, rest), value));
      }
    }
  }
}

void add_weighted(const float* x, const float* weights, int64_t count, int64_t channels, int64_t heads, float* sums) {
  // Pairs of positions: the sums are loaded and stored half as often.
  const int64_t width = channels / heads, whole = width / kLanes * kLanes;
  const Lanes rest = first_lanes(width - whole);
  for (int64_t i = 0; i < count; i += 2, x += 2 * channels, weights += 2 * heads) {
    const bool pair = i + 1 < count;
    const float* other = pair ? x + channels : x;
    for (int64_t head = 0; head < heads; ++head) {
      const Vector a = constant(weights[head]), b = constant(pair ? weights[heads + head] : 0.f);
      int64_t j = head * width;
      for (const int64_t end = j + whole; j < end; j += kLanes) {
        const Vector sum = multiply_add(a, load(x + j), load(sums + j));
        store(sums + j, pair ? multiply_add(b, load(other + j), sum) : sum);
      }
      if (whole < width) {
        const Vector sum = multiply_add(a, load<true>(x + j, rest), load<true>(sums + j, rest));
        store<true>(sums + j, rest, pair ? multiply_add(b, load<true>(other + j, rest), sum) : sum);
      }
    }
  }
}

void add_scaled(const float* x, const float* branch, const float* scale, int64_t count, int64_t channels, float* out) {
  for (int64_t i = 0; i < count; ++i, x += channels, branch += channels, out += channels) {
    int64_t j = 0;
    for (; j + kLanes <= channels; j += kLanes) {
      const Vector product = load(branch + j) * load(scale + j);
      store(out + j, load(x + j) + product);
    }
    if (j < channels) {
      const Lanes rest = first_lanes(channels - j);
      const Vector product = load<true>(branch + j, rest) * load<true>(scale + j, rest);
      store<true>(out + j, rest, load<true>(x + j, rest) + product);
    }
  }
}

void add_moments(const float* x, int64_t count, float shift, double& sum, double& squares) {
  constexpr int64_t kVectors = 4, kStep = kVectors * kLanes;
  // Number of values that are summed in single precision.
  constexpr int64_t kRun = 64 * kStep;
  const Vector shifts = constant(shift);
  int64_t i = 0;
  while (i + kStep <= count) {
    Vector sums[kVectors], of_squares[kVectors];
    UNROLL for (int t = 0; t < kVectors; ++t) {
      sums[t] = of_squares[t] = zero();
    }
    for (const int64_t end = smaller(i + kRun, count - kStep + 1); i < end; i += kStep) {
      UNROLL for (int t = 0; t < kVectors; ++t) {
        const Vector value = load(x + i + t * kLanes) - shifts;
        sums[t] = sums[t] + value;
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
      const Vector value = load(x + j) - means;
      store(out + j, multiply_add(value, load(scale + j), load(bias + j)));
    }
    if (j < channels) {
      const Lanes rest = first_lanes(channels - j);
      const Vector value = load<true>(x + j, rest) - means;
      store<true>(out + j, rest, multiply_add(value, load<true>(scale + j, rest), load<true>(bias + j, rest)));
    }
  }
}

}  // namespace

void set_maps(Kernels& kernels) {
  kernels.similarities = similarities;
  kernels.add_context = add_context;
  kernels.add_weighted = add_weighted;
  kernels.add_scaled = add_scaled;
  kernels.add_moments = add_moments;
  kernels.scale = scale;
}

}  // namespace INSTANCE
}  // namespace fcvit_mm
