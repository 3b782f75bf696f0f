// Functions that divide the work of the kernels among PyTorch's threads. Results do not depend on the number of threads,
// except for channel mixers of small maps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace fcvit_mm {

// Values of a packed weight, and of rows of a map, that a thread computes with at a time: parts of its second-level
// cache.
constexpr int64_t kGroupValues = 32 * 1024, kBlockValues = 32 * 1024;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Positions of a map with these channels in kBlockValues.
inline int64_t rows_of_block(int64_t channels) { return std::max<int64_t>(kBlockValues / std::max<int64_t>(channels, 1), 1); }

// Memory of this thread, aligned to 64 bytes and kept for the next call.
float* thread_buffer(int64_t count);

// ---- kernels.cpp ----

// The kernels that run: those for the newest instructions of this processor, or the older ones that PyTorch is set to
// use (ATEN_CPU_CAPABILITY). Must not be called on processors without AVX2.
const Kernels& kernels();
// Selects other kernels, by PyTorch's name of their instructions, for comparison. Weights packed before do not fit them.
void choose_kernels(const std::string& instructions);

// ---- convolutions.cpp ----

// Depth-wise convolutions, 3x3 and larger, and the gradients of their weight (C, k, k) and bias (C).
void convolve_3x3(const Convolution& conv, int64_t batch);
void convolve_large(const Convolution& conv, int64_t batch);
// Some rows of one image, on this thread, with packed taps; and how many rows to compute at a time.
void convolve_rows(const Convolution& conv, int64_t begin, int64_t end);
int64_t rows_at_a_time(const Convolution& conv);
void sum_gradients(const Gradient& gradient, int64_t batch, float* of_weight, float* of_bias);

// 3x3 convolutions with zero padding by Winograd's tiles, some at a time. Where there are enough for all threads, each
// computes its own; else they divide the tiles for the transforms, and the points and outputs for the products.
struct TiledConvolution {
  const float* x;
  const float* panels;  // (kTilePoints, outputs / kBlock rounded up, channels, kBlock)
  const float* bias;    // (outputs), or null
  float* out;
  int64_t batch, height, width, channels, outputs;
};
void convolve_tiles(const TiledConvolution& conv);

// ---- products.cpp ----

// The weight of a 1x1 convolution: (columns, depth), or if `turned` (depth, columns), or packed by pack_panels.
struct Weight {
  const float* values;
  int64_t stride;
  bool turned, packed;
};
// Products of a 1x1 convolution, without `panels`.
void multiply_all(const Product& all, const Weight& weight);
// The gradients of the weight and the bias of a 1x1 convolution. `all.out` and `all.sums` hold zeros.
void correlate(const Correlation& all);
// Two 1x1 convolutions one after the other, the weights (columns, depth), or both packed as pack_panels does.
void multiply_twice(const Product& first, const float* first_weight, const Product& second,
                    const float* second_weight, bool packed);

// Size, in values of float32, of a row or of a packed weight's depth: half as many if they are pairs of bfloat16.
inline int64_t packed_size(int64_t values, bool paired) { return paired ? divide_up(values, 2) : values; }

// Channel mixers: 1x1 convolution to more channels, 3x3 depth-wise convolution, GELU, 1x1 convolution back.
struct Mixer {
  const float* x;  // if `paired`, each row of channels as of round_to_pairs
  float* out;
  int64_t batch, height, width, channels, hidden;
  bool packed;                        // `expand` and `reduce` are as of pack_panels
  bool paired;                        // these are of bfloat16: see multiply_pairs; packed, too
  const float *expand, *expand_bias;  // (hidden, channels)
  const float *taps, *taps_bias;      // (hidden, 3, 3), or as of pack_taps if `packed`
  const float *reduce, *reduce_bias;  // (channels, hidden)
  const float* shortcut;              // a map to add, or null
};
void mix(const Mixer& mixer);

// ---- maps.cpp ----

// A shift for add_moments: the mean of the first values, because one alone, far from the others, would cost precision.
constexpr int64_t kShiftValues = 256;
float find_shift(const float* x, int64_t count);

// The global context of a batch: similarities and their deviation, then the weighted context, each in one pass.
struct ContextOfBatch {
  const float* x;
  float* out;
  int64_t batch, positions, channels, heads;
  const float *means, *context;    // (batch, channels)
  const float *weights, *biases;  // (heads)
  double eps;
};
void add_contexts(const ContextOfBatch& all);

// ---- blocks.cpp ----

// Adds the global context, then a depth-wise and two 1x1 convolutions, each followed by GELU. Weights of products are
// as of pack_panels, those of depth-wise convolutions as of pack_taps.
struct TokenMix {
  int64_t context_hidden;
  const float *context_fc1, *context_fc1_bias;  // (2 context_hidden, channels)
  const float *context_fc2, *context_fc2_bias;  // (channels, context_hidden)
  const float *rescale_weight, *rescale_bias;   // (heads)
  int64_t kernel;                               // not 3
  const float *taps, *taps_bias;
  int64_t hidden;
  const float *fc1, *fc1_bias, *fc2, *fc2_bias;
};
// A block: GroupNorm of one group, token mixes and residual, GroupNorm without a weight, channel mixer and residual.
struct Block {
  const float* x;
  int64_t heads;
  const float *norm_weight, *norm_bias;  // (channels), each may be null
  std::vector<TokenMix> mixes;  // if the channel mixer is paired, their convolutions are, too
  const float* scale;   // of the output of the mixes, (channels), or null
  Mixer channel_mixer;  // packed; reads and adds to the output of the first half: its `x` and `shortcut` are not used
  double eps, context_eps;
};
void compute_block(const Block& block);

}  // namespace fcvit_mm
