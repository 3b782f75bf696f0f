// Vectors of AVX2, and the tiles that fit its 16 registers.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

using Vector = __m256;
using Lanes = __m256i;  // a mask

// Products: 6 x 2 sums, the two vectors of a panel and a value. Their panels' depth: 16 KiB of a first-level cache of
// 32.
constexpr int kProductRows = 6;
constexpr int64_t kProductDepth = 256;
// Depth-wise convolutions: 2 x 6 sums, two taps and a value.
constexpr int kConvolutionColumns = 6;
// 3x3 kernels: 2 x 4 sums, the 6 taps of two rows and a value.
constexpr int kConvolution3x3Columns = 4;

// Loaded once: a compiler would load it for each multiplication again, as its operand in memory, and loads are scarce.
#define KEEP_IN_REGISTER(value) asm("" : "+x"(value))

INLINE Vector load(const float* from) { return _mm256_loadu_ps(from); }
INLINE void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }
INLINE Lanes first_lanes(int64_t count) {
  alignas(32) static const int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - count));
}
INLINE Vector load_lanes(const float* from, Lanes lanes) { return _mm256_maskload_ps(from, lanes); }
INLINE void store_lanes(float* to, Lanes lanes, Vector value) { _mm256_maskstore_ps(to, lanes, value); }
INLINE Vector zero() { return _mm256_setzero_ps(); }
INLINE Vector constant(float value) { return _mm256_set1_ps(value); }
INLINE Vector broadcast(const float* from) { return _mm256_broadcast_ss(from); }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vector add_product(Vector a, Vector b, Vector sum) { return multiply_add(a, b, sum); }
// Of not-a-number and another, the second.
INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
INLINE Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
INLINE Vector nearest(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Of a whole exponent, where neither a factor nor the product is below the normal numbers.
INLINE Vector times_power_of_two(Vector x, Vector exponent) {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), bits));
}

}  // namespace
}  // namespace INSTANCE
}  // namespace fcvit_mm
