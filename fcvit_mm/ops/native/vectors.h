// Operations on vectors of any size: see vectors_avx2.h.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

// Channels that a vector holds, and that are computed at a time.
constexpr int64_t kLanes = sizeof(Vector) / sizeof(float), kBlock = 2 * kLanes;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// Load and store only the first lanes if `kPartial` is set; the others are loaded as zero, and not stored.
template <bool kPartial>
INLINE Vector load(const float* from, Lanes lanes) {
  return kPartial ? load_lanes(from, lanes) : load(from);
}

template <bool kPartial>
INLINE void store(float* to, Lanes lanes, Vector value) {
  if (kPartial) {
    store_lanes(to, lanes, value);
  } else {
    store(to, value);
  }
}

// A table of functions, one for each count from 1 to the size of the table.
template <int... kCounts>
struct Counts {};
template <int kMost, int... kCounts>
struct CountsTo : CountsTo<kMost - 1, kMost, kCounts...> {};
template <int... kCounts>
struct CountsTo<0, kCounts...> {
  using type = Counts<kCounts...>;
};
template <typename Function, int64_t kSize>
struct Table {
  Function function[kSize];
  INLINE Function of(int64_t count) const { return function[count - 1]; }
};

// erf(x / sqrt(2)) for x in [-kEnd, kEnd], as x P(x^2) / Q(x^2), fitted for the least error of GELU.
constexpr float kEnd = 5.25f;
INLINE Vector error_function(Vector z) {
  const Vector square = z * z;
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
  return z * p / q;
}

// x / 2 * (1 + erf(x / sqrt(2))). Fitted to 2e-7; in float32 the error comes to 8e-7 at most for negative x and 3e-7 of
// x for others. Beyond kEnd, GELU is 0 or x to 4e-7. NaN is kept: minimum and maximum return their second
// argument then.
INLINE Vector gelu(Vector x) {
  const Vector above = maximum(constant(-kEnd), x), z = minimum(constant(kEnd), above);
  const Vector half = above * constant(0.5f);
  return multiply_add(half, error_function(z), half);
}

// GELU of `count` values in place.
void gelu(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(x + i, gelu(load(x + i)));
  }
  if (i < count) {
    const Lanes rest = first_lanes(count - i);
    store<true>(x + i, rest, gelu(load<true>(x + i, rest)));
  }
}

// GELU, and its derivative: (1 + erf(x / sqrt(2))) / 2 + x exp(-x^2 / 2) / sqrt(2 pi), to 1e-6. The exponential is a
// power of two: of the nearest whole number by the exponent, of the rest by its series. Not-a-number stays so.
INLINE Vector gelu_and_slope(Vector x, Vector& slope) {
  constexpr float kFar = 13.f;  // where the second term is 0, and the power still a normal number
  const Vector above = maximum(constant(-kEnd), x), z = minimum(constant(kEnd), above);
  const Vector half = multiply_add(error_function(z), constant(0.5f), constant(0.5f));
  const Vector y = minimum(constant(kFar), maximum(constant(-kFar), x));
  const Vector power = y * y * constant(-0.721347520f);
  const Vector whole = nearest(power);
  const Vector rest = power - whole;
  Vector e = constant(1.54035304e-4f);
  e = multiply_add(e, rest, constant(1.33335581e-3f));
  e = multiply_add(e, rest, constant(9.61812911e-3f));
  e = multiply_add(e, rest, constant(5.55041087e-2f));
  e = multiply_add(e, rest, constant(2.40226507e-1f));
  e = multiply_add(e, rest, constant(6.93147181e-1f));
  e = multiply_add(e, rest, constant(1.f));
  e = times_power_of_two(e, whole);
  slope = multiply_add((y * e), constant(0.398942280f), half);
  return above * half;
}

// Widths of tiles that together cover `rest`, as even as can be: one of 1 would cost as much as one of 2.
INLINE int64_t next_width(int64_t rest, int64_t most) {
  const int64_t tiles = (rest + most - 1) / most;
  return (rest + tiles - 1) / tiles;
}

}  // namespace
}  // namespace INSTANCE
}  // namespace fcvit_mm
