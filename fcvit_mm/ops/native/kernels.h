// The kernels, each on one thread and without PyTorch: maps lie in memory as (B, H, W, C), float32.
#pragma once

#include <cstdint>

namespace fcvit_mm {

// A depth-wise convolution with stride 1 and zero padding that keeps the size; followed by GELU where `gelu` is set.
struct Convolution {
  const float* x;
  const float* weight;  // (C, k, k)
  const float* bias;    // (C), or null
  float* out;
  int64_t height, width, channels, kernel;
  bool gelu;
};

namespace avx2 {

// Channels that a vector holds.
constexpr int64_t kLanes = 8;
// Channels that are computed at a time: a cache line.
constexpr int64_t kBlock = 2 * kLanes;

// The values of `weight` for channels from `first` on, all taps of one vector of channels after those of another's:
// (count / kLanes, k * k, kLanes) with zeros beyond the last channel. `count` is a multiple of kLanes.
void pack_taps(const Convolution& conv, int64_t first, int64_t count, float* taps);

// Large kernels. The outputs of one image in these rows and columns, for the kBlock channels from `channel` on. `taps`
// as of pack_taps for these channels; `scratch` has scratch_size() values, aligned to 32 bytes.
struct Region {
  int64_t image, channel, row_begin, row_end, column_begin, column_end;
};
int64_t scratch_size(int64_t rows, int64_t columns, int64_t kernel);
void convolve_region(const Convolution& conv, const Region& region, const float* taps, float* scratch);

// 3x3 kernels. Two rows of outputs of one image (one, if the map ends), for the channels from `begin` to `end`; `begin`
// is a multiple of kLanes. `taps` as of pack_taps for all channels; `zeros` has as many as there are channels.
void convolve_3x3_rows(const Convolution& conv, int64_t image, int64_t row, int64_t begin, int64_t end,
                       const float* taps, const float* zeros);

// GELU of `count` values in place.
void gelu(float* x, int64_t count);

}  // namespace avx2
}  // namespace fcvit_mm
