// Vectors of AVX-512, and the tiles that fit its 32 registers.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

using Vector = __m512;
using Lanes = __mmask16;

// Products: 14 x 2 sums, the two vectors of a panel and a value. Their panels' depth: 32 KiB of a first-level cache
// of 48.
constexpr int kProductRows = 14;
constexpr int64_t kProductDepth = 256;
// Depth-wise convolutions: 2 x 14 sums, two taps and a value.
constexpr int kConvolutionColumns = 14;
// 3x3 kernels: 2 x 7 sums, 9 taps and a value.
constexpr int kConvolution3x3Columns = 7;

// As of AVX2.
#define KEEP_IN_REGISTER(value) asm("" : "+v"(value))

INLINE Vector load(const float* from) { return _mm512_loadu_ps(from); }
INLINE void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }
INLINE Lanes first_lanes(int64_t count) { return static_cast<Lanes>((1u << count) - 1); }
INLINE Vector load_lanes(const float* from, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
INLINE void store_lanes(float* to, Lanes lanes, Vector value) { _mm512_mask_storeu_ps(to, lanes, value); }
INLINE Vector zero() { return _mm512_setzero_ps(); }
INLINE Vector constant(float value) { return _mm512_set1_ps(value); }
INLINE Vector broadcast(const float* from) { return _mm512_set1_ps(*from); }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
// The multiply-add of matrix products. The four bytes of a value hold a float32, or two values of bfloat16 whose products
// are added.
#ifdef PAIRS
INLINE Vector add_product(Vector a, Vector b, Vector sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
#else
INLINE Vector add_product(Vector a, Vector b, Vector sum) { return multiply_add(a, b, sum); }
#endif
INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
INLINE Vector minimum(Vector a, Vector b) { return _mm512_min_ps(a, b); }
INLINE Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Vector times_power_of_two(Vector x, Vector exponent) { return _mm512_scalef_ps(x, exponent); }

}  // namespace
}  // namespace INSTANCE
}  // namespace fcvit_mm
