// The operators fcvit_mm_cpu::... of backward passes: gradients, and parts of the gradients of the global context.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "operators.h"

namespace fcvit_mm {
namespace {

// Checks the gradient of a map with `channels` channels and the other sizes of `x`.
void check_grad(const Tensor& grad, const Tensor& x, int64_t channels) {
  check_map(x);
  check_shape("grad", grad, {x.size(0), channels, x.size(2), x.size(3)});
}

std::tuple<Tensor, Tensor> depthwise_conv2d_grad_weight(const Tensor& grad, const Tensor& x, int64_t kernel_size) {
  check_grad(grad, x, x.size(1));
  TORCH_CHECK(kernel_size > 0 && kernel_size % 2 == 1, "fcvit_mm_cpu: kernel_size is ", kernel_size, ", expected odd");
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor of_outputs = grad.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor of_weight = at::empty({x.size(1), 1, kernel_size, kernel_size}, x.options());
  Tensor of_bias = at::empty({x.size(1)}, x.options());
  if (x.numel() == 0) {
    return {of_weight.zero_(), of_bias.zero_()};
  }
  sum_gradients({map.const_data_ptr<float>(), of_outputs.const_data_ptr<float>(), x.size(2), x.size(3), x.size(1),
                 kernel_size, nullptr, nullptr, nullptr, nullptr},
                x.size(0), of_weight.mutable_data_ptr<float>(), of_bias.mutable_data_ptr<float>());
  return {of_weight, of_bias};
}

std::tuple<Tensor, Tensor> dwconv_gelu_grad_(Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const OptionalTensor& bias, Tensor& activated) {
  check_depthwise(x, weight, bias);
  const int64_t channels = x.size(1);
  check_shape("weight", weight, {channels, 1, 3, 3});
  check_output("grad", grad, x.sizes(), x);
  check_output("activated", activated, x.sizes(), x);
  check_output("activated", activated, x.sizes(), grad);
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), own = weight.contiguous();
  const Tensor shift = bias ? bias->contiguous() : Tensor();
  Tensor of_weight = at::empty(weight.sizes(), x.options()), of_bias = at::empty({channels}, x.options());
  if (x.numel() == 0) {
    return {of_weight.zero_(), of_bias.zero_()};
  }
  Convolution conv{};
  conv.weight = own.const_data_ptr<float>();
  conv.channels = channels;
  conv.kernel = 3;
  const int64_t padded = divide_up(channels, kernels().lanes) * kernels().lanes;
  std::vector<float> taps(padded * 9);
  kernels().pack_taps(conv, 0, padded, taps.data());
  float* of_outputs = grad.mutable_data_ptr<float>();
  sum_gradients({map.const_data_ptr<float>(), of_outputs, x.size(2), x.size(3), channels, 3, taps.data(),
                 bias ? shift.const_data_ptr<float>() : nullptr, of_outputs, activated.mutable_data_ptr<float>()},
                x.size(0), of_weight.mutable_data_ptr<float>(), of_bias.mutable_data_ptr<float>());
  return {of_weight, of_bias};
}

std::tuple<Tensor, Tensor> pointwise_conv2d_grad_weight(const Tensor& grad, const Tensor& x) {
  TORCH_CHECK(grad.dim() == 4, "fcvit_mm_cpu: grad is ", grad.sizes(), ", expected (B, D, H, W)");
  check_grad(grad, x, grad.size(1));
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor of_outputs = grad.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor of_weight = at::zeros({grad.size(1), x.size(1), 1, 1}, x.options());
  Tensor of_bias = at::zeros({grad.size(1)}, x.options());
  if (grad.numel() == 0 || x.numel() == 0) {
    return {of_weight, grad.sum({0, 2, 3})};
  }
  Correlation all{};
  all.left = of_outputs.const_data_ptr<float>();
  all.left_stride = all.rows = grad.size(1);
  all.right = map.const_data_ptr<float>();
  all.right_stride = all.columns = all.out_stride = x.size(1);
  all.count = x.size(0) * x.size(2) * x.size(3);
  all.out = of_weight.mutable_data_ptr<float>();
  all.sums = of_bias.mutable_data_ptr<float>();
  correlate(all);
  return {of_weight, of_bias};
}

// Calls `compute(image, first position, number of positions)` for blocks of positions of all images; not at all if the map
// has no values.
template <typename Compute>
void for_blocks(const Tensor& x, int64_t rows, const Compute& compute) {
  const int64_t positions = x.size(2) * x.size(3), blocks = x.numel() ? divide_up(positions, rows) : 0;
  at::parallel_for(0, x.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % blocks * rows;
      compute(i / blocks, row, std::min(rows, positions - row));
    }
  });
}

// Parts of the gradients of the global context: products of each position and head of a map with a vector, and sums over
// positions.
Tensor similarities(const Tensor& x, const Tensor& vectors, int64_t num_heads) {
  const int64_t positions = check_heads(x, num_heads), channels = x.size(1);
  check_shape("vectors", vectors, {x.size(0), channels});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), own = vectors.contiguous();
  Tensor out = at::zeros({x.size(0), positions, num_heads}, x.options());
  const float *from = map.const_data_ptr<float>(), *of_vectors = own.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for_blocks(map, rows_of_block(channels), [&](int64_t image, int64_t row, int64_t count) {
    const Context context{channels, num_heads, of_vectors + image * channels, nullptr, nullptr};
    const int64_t position = image * positions + row;
    kernels().similarities(context, from + position * channels, count, 0.f, to + position * num_heads);
  });
  return out;
}

Tensor add_weighted(const Tensor& x, const Tensor& weights, const Tensor& vectors) {
  const int64_t heads = weights.size(-1), positions = check_heads(x, heads), channels = x.size(1);
  check_shape("weights", weights, {x.size(0), positions, heads});
  check_shape("vectors", vectors, {x.size(0), channels});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), own = vectors.contiguous();
  const Tensor factors = weights.contiguous();
  Tensor out = empty_map(x, channels);
  const float *from = map.const_data_ptr<float>(), *of_vectors = own.const_data_ptr<float>();
  const float* of_factors = factors.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const std::vector<float> ones(heads, 1.f), zeros(heads);
  for_blocks(map, rows_of_block(channels), [&](int64_t image, int64_t row, int64_t count) {
    const Context context{channels, heads, nullptr, of_vectors + image * channels, zeros.data()};
    const int64_t position = image * positions + row;
    kernels().add_context(context, from + position * channels, count, of_factors + position * heads, ones.data(),
                      to + position * channels);
  });
  return out;
}

Tensor weighted_sums(const Tensor& x, const Tensor& weights) {
  const int64_t heads = weights.size(-1), positions = check_heads(x, heads), channels = x.size(1);
  check_shape("weights", weights, {x.size(0), positions, heads});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), factors = weights.contiguous();
  const int64_t rows = rows_of_block(channels);
  // Sums of blocks, added in order: bitwise the same with any number of threads.
  Tensor sums = at::zeros({x.size(0), divide_up(positions, rows), channels}, x.options());
  const float *from = map.const_data_ptr<float>(), *of_factors = factors.const_data_ptr<float>();
  float* to = sums.mutable_data_ptr<float>();
  for_blocks(map, rows, [&](int64_t image, int64_t row, int64_t count) {
    const int64_t position = image * positions + row, block = image * sums.size(1) + row / rows;
    kernels().add_weighted(from + position * channels, of_factors + position * heads, count, channels, heads,
                      to + block * channels);
  });
  return sums.sum(1);
}

// Overwrites `x`, the input of GELU, by its gradient; `grad` is the gradient of the output.
Tensor& gelu_grad_(Tensor& x, const Tensor& grad) {
  check_map(x);
  check_layout("x", x, x.sizes());
  check_layout("grad", grad, x.sizes());
  at::assert_no_partial_overlap(x, grad);
  float* values = x.mutable_data_ptr<float>();
  const float* grads = grad.const_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) {
    kernels().gelu_gradient(values + begin, grads + begin, end - begin);
  });
  return x;
}

}  // namespace

TORCH_LIBRARY_IMPL(fcvit_mm_cpu, CPU, library) {
  library.impl("depthwise_conv2d_grad_weight", depthwise_conv2d_grad_weight);
  library.impl("dwconv_gelu_grad_", dwconv_gelu_grad_);
  library.impl("pointwise_conv2d_grad_weight", pointwise_conv2d_grad_weight);
  library.impl("gelu_grad_", gelu_grad_);
  library.impl("similarities", similarities);
  library.impl("add_weighted", add_weighted);
  library.impl("weighted_sums", weighted_sums);
}

}  // namespace fcvit_mm
