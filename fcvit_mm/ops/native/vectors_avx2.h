// What the kernels for processors with AVX2 and FMA share; for their sources alone, each of which ends with
// vectors_avx2_end.h. No standard templates here: compiled for AVX2, a copy of one might be linked into code that runs
// elsewhere.
#include "kernels.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define INLINE inline __attribute__((always_inline))
// Loaded once: a compiler would load it for each multiplication again, as its operand in memory, and loads are scarce.
#define KEEP_IN_REGISTER(value) asm("" : "+x"(value))

namespace fcvit_mm {
namespace avx2 {
namespace {

using Vector = __m256;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// Loads and stores of the first `count` lanes of a vector; the others are zero, and not touched.
INLINE __m256i first_lanes(int64_t count) {
  alignas(32) static const int32_t kMask[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + kLanes - count));
}

template <bool kPartial>
INLINE Vector load(const float* from, __m256i lanes) {
  return kPartial ? _mm256_maskload_ps(from, lanes) : _mm256_loadu_ps(from);
}

template <bool kPartial>
INLINE void store(float* to, __m256i lanes, Vector value) {
  if (kPartial) {
    _mm256_maskstore_ps(to, lanes, value);
  } else {
    _mm256_storeu_ps(to, value);
  }
}

INLINE Vector constant(float value) { return _mm256_set1_ps(value); }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }

// x / 2 * (1 + erf(x / sqrt(2))). The error function as x P(x^2) / Q(x^2), fitted on [0, kEnd] for the least error of
// the product, 2e-7; in float32 it comes to 8e-7 at most for negative x and 3e-7 of x for others. Beyond kEnd, GELU is
// 0 or x to 4e-7. Not-a-number stays so: minimum and maximum return their second argument then.
INLINE Vector gelu(Vector x) {
  constexpr float kEnd = 5.25f;
  const Vector above = _mm256_max_ps(constant(-kEnd), x), z = _mm256_min_ps(constant(kEnd), above);
  const Vector square = _mm256_mul_ps(z, z);
  Vector p = constant(1.55869329e-05f);
  p = multiply_add(p, square, constant(0.000848709547f));
  p = multiply_add(p, square, constant(0.0123878792f));
  p = multiply_add(p, square, constant(0.11832615f));
  p = multiply_add(p, square, constant(0.797879457f));
  Vector q = constant(6.4623481e-07f);
  q = multiply_add(q, square, constant(0.000154454712f));
  q = multiply_add(q, square, constant(0.00331613631f));
  q = multiply_add(q, square, constant(0.0430530384f));
  q = multiply_add(q, square, constant(0.314939946f));
  q = multiply_add(q, square, constant(1.f));
  const Vector half = _mm256_mul_ps(above, constant(0.5f));
  return multiply_add(half, _mm256_div_ps(_mm256_mul_ps(z, p), q), half);
}

// Widths of tiles that together cover `rest`, as even as can be: one of 1 would cost as much as one of 2.
INLINE int64_t next_width(int64_t rest, int64_t most) {
  const int64_t tiles = (rest + most - 1) / most;
  return (rest + tiles - 1) / tiles;
}

}  // namespace
}  // namespace avx2
}  // namespace fcvit_mm
