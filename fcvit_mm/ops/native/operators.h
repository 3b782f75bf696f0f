// Checks of the operators' arguments, shared by operators.cpp and gradient_operators.cpp.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Optional.h>
#include <torch/library.h>

#include <cstdint>
#include <string>

#include "threads.h"

namespace fcvit_mm {

using at::Tensor;
using OptionalTensor = c10::optional<Tensor>;

inline bool supported() {
  const std::string capability = at::get_cpu_capability();
  return capability == "AVX2" || capability == "AVX512";
}

inline void check_map(const Tensor& x) {
  TORCH_CHECK(supported(), "fcvit_mm_cpu: this processor has no AVX2");
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat && x.device().is_cpu(), "fcvit_mm_cpu: x is ", x.sizes(),
              " of ", x.scalar_type(), " on ", x.device(), ", expected (B, C, H, W) of float32 on cpu");
}

inline void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) {
  TORCH_CHECK(tensor.scalar_type() == dtype && tensor.device().is_cpu() && tensor.sizes() == shape,
              "fcvit_mm_cpu: ", name, " is ", tensor.sizes(), " of ", tensor.scalar_type(), " on ", tensor.device(),
              ", expected ", shape, " of ", dtype == at::kFloat ? "float32" : "bfloat16", " on cpu");
}

// Checks the weight of a 1x1 convolution with `channels` inputs; returns the number of outputs.
inline int64_t check_pointwise(const char* name, const Tensor& weight, int64_t channels) {
  TORCH_CHECK(weight.dim() == 4, "fcvit_mm_cpu: ", name, " is ", weight.sizes(), ", expected (D, ", channels,
              ", 1, 1)");
  check_shape(name, weight, {weight.size(0), channels, 1, 1});
  return weight.size(0);
}

// The same for a weight that may be packed by pack_panels: (columns / kBlock rounded up, depth, kBlock). The number of
// outputs is then that of the bias.
inline int64_t check_columns(const char* name, const Tensor& weight, const Tensor& bias, int64_t depth) {
  if (weight.dim() != 3) {
    return check_pointwise(name, weight, depth);
  }
  check_shape(name, weight, {divide_up(bias.numel(), kernels().block), depth, kernels().block});
  TORCH_CHECK(weight.is_contiguous(), "fcvit_mm_cpu: ", name, " is not contiguous");
  return bias.numel();
}

// Checks depth-wise weights packed by pack_taps for whole blocks of channels: (channels / lanes rounded up, k * k, lanes).
inline void check_taps(const char* name, const Tensor& taps, int64_t channels, int64_t kernel) {
  const int64_t vectors = divide_up(channels, kernels().block) * (kernels().block / kernels().lanes);
  check_shape(name, taps, {vectors, kernel * kernel, kernels().lanes});
  TORCH_CHECK(taps.is_contiguous(), "fcvit_mm_cpu: ", name, " is not contiguous");
}

// Returns whether the weights are packed; both must be, or neither.
inline bool check_both(const Tensor& fc1_weight, const Tensor& fc2_weight) {
  const bool packed = fc1_weight.dim() == 3;
  TORCH_CHECK(packed == (fc2_weight.dim() == 3), "fcvit_mm_cpu: fc1_weight is ", fc1_weight.sizes(),
              " and fc2_weight is ", fc2_weight.sizes(), ", expected both packed or neither");
  return packed;
}

// Checks that a map has this shape and is channels_last.
inline void check_layout(const char* name, const Tensor& out, at::IntArrayRef shape) {
  check_shape(name, out, shape);
  TORCH_CHECK(out.is_contiguous(at::MemoryFormat::ChannelsLast), "fcvit_mm_cpu: ", name, " is not channels_last");
}

// The same of a map that is written while `input` is read: PyTorch's error if they share memory.
inline void check_output(const char* name, const Tensor& out, at::IntArrayRef shape, const Tensor& input) {
  check_layout(name, out, shape);
  at::assert_no_overlap(out, input);
}

inline void check_depthwise(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == at::kFloat && weight.device().is_cpu() &&
                  weight.size(0) == x.size(1) && weight.size(1) == 1 && weight.size(2) == weight.size(3) &&
                  weight.size(2) % 2 == 1,
              "fcvit_mm_cpu: weight is ", weight.sizes(), " of ", weight.scalar_type(), " on ", weight.device(),
              ", expected (", x.size(1), ", 1, k, k) of float32 on cpu, k odd");
  if (bias) {
    check_shape("bias", *bias, {x.size(1)});
  }
}

// Returns the number of positions of a map, after checking that the heads divide its channels.
inline int64_t check_heads(const Tensor& x, int64_t num_heads) {
  check_map(x);
  TORCH_CHECK(num_heads > 0 && x.size(1) % num_heads == 0, "fcvit_mm_cpu: x has ", x.size(1),
              " channels, expected a multiple of num_heads=", num_heads);
  return x.size(2) * x.size(3);
}

inline Tensor empty_map(const Tensor& x, int64_t channels) {
  return at::empty({x.size(0), channels, x.size(2), x.size(3)}, x.options(), at::MemoryFormat::ChannelsLast);
}

}  // namespace fcvit_mm
