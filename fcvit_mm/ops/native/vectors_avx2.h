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

// erf(x / sqrt(2)) for x in [-kEnd, kEnd], as x P(x^2) / Q(x^2), fitted for the least error of GELU.
constexpr float kEnd = 5.25f;
INLINE Vector error_function(Vector z) {
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
  return _mm256_div_ps(_mm256_mul_ps(z, p), q);
}

// x / 2 * (1 + erf(x / sqrt(2))). Fitted to 2e-7; in float32 the error comes to 8e-7 at most for negative x and 3e-7 of
// x for others. Beyond kEnd, GELU is 0 or x to 4e-7. Not-a-number stays so: minimum and maximum return their second
// argument then.
INLINE Vector gelu(Vector x) {
  const Vector above = _mm256_max_ps(constant(-kEnd), x), z = _mm256_min_ps(constant(kEnd), above);
  const Vector half = _mm256_mul_ps(above, constant(0.5f));
  return multiply_add(half, error_function(z), half);
}

// GELU, and its derivative: (1 + erf(x / sqrt(2))) / 2 + x exp(-x^2 / 2) / sqrt(2 pi), to 1e-6. The exponential is a
// power of two: of the nearest whole number by the exponent, of the rest by its series. Not-a-number stays so.
INLINE Vector gelu_and_slope(Vector x, Vector& slope) {
  constexpr float kFar = 13.f;  // where the second term is 0, and the power still a normal number
  const Vector above = _mm256_max_ps(constant(-kEnd), x), z = _mm256_min_ps(constant(kEnd), above);
  const Vector half = multiply_add(error_function(z), constant(0.5f), constant(0.5f));
  const Vector y = _mm256_min_ps(constant(kFar), _mm256_max_ps(constant(-kFar), x));
  const Vector power = _mm256_mul_ps(_mm256_mul_ps(y, y), constant(-0.721347520f));
  const Vector whole = _mm256_round_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector rest = _mm256_sub_ps(power, whole);
  Vector e = constant(1.54035304e-4f);
  e = multiply_add(e, rest, constant(1.33335581e-3f));
  e = multiply_add(e, rest, constant(9.61812911e-3f));
  e = multiply_add(e, rest, constant(5.55041087e-2f));
  e = multiply_add(e, rest, constant(2.40226507e-1f));
  e = multiply_add(e, rest, constant(6.93147181e-1f));
  e = multiply_add(e, rest, constant(1.f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  e = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(e), exponent));
  slope = multiply_add(_mm256_mul_ps(y, e), constant(0.398942280f), half);
  return _mm256_mul_ps(above, half);
}

// Widths of tiles that together cover `rest`, as even as can be: one of 1 would cost as much as one of 2.
INLINE int64_t next_width(int64_t rest, int64_t most) {
  const int64_t tiles = (rest + most - 1) / most;
  return (rest + tiles - 1) / tiles;
}

}  // namespace
}  // namespace avx2
}  // namespace fcvit_mm
