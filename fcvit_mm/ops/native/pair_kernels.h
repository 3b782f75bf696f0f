// Pairs of bfloat16 values for matrix products: two neighbouring values of a row are stored in the place of one float32.
namespace fcvit_mm {
namespace INSTANCE {
namespace {

void round_to_pairs(const float* from, int64_t count, int64_t width, float* pairs) {
  for (int64_t row = 0; row < count; ++row, from += width, pairs += (width + 1) / 2) {
    int64_t i = 0;
    for (; i + kBlock <= width; i += kBlock) {
      const __m512bh rounded = _mm512_cvtne2ps_pbh(load(from + i + kLanes), load(from + i));
      store(pairs + i / 2, (Vector)rounded);
    }
    if (i < width) {
      const Lanes low = first_lanes(smaller(width - i, kLanes));
      const Lanes high = first_lanes(larger(width - i - kLanes, 0));
      const __m512bh rounded = _mm512_cvtne2ps_pbh(load<true>(from + i + kLanes, high), load<true>(from + i, low));
      store<true>(pairs + i / 2, first_lanes((width - i + 1) / 2), (Vector)rounded);
    }
  }
}

}  // namespace

void set_pairs(Kernels& kernels) {
  kernels.convolve_region_pairs = convolve_region;
  kernels.multiply_pairs = multiply;
  kernels.round_to_pairs = round_to_pairs;
}

}  // namespace INSTANCE
}  // namespace fcvit_mm
