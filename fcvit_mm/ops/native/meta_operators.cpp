// Shapes and layouts of the operators' outputs, for meta tensors, torch.compile and torch.export.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Optional.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>

namespace fcvit_mm {
namespace {

using at::Tensor;
using OptionalTensor = c10::optional<Tensor>;

Tensor meta(const Tensor& x, const Tensor&, const OptionalTensor&) {
  return at::empty_symint(x.sym_sizes(), x.options(), at::MemoryFormat::ChannelsLast);
}

std::tuple<Tensor, Tensor> meta_of_grad_weight(const Tensor&, const Tensor& x, int64_t kernel_size) {
  const c10::SymInt channels = x.sym_size(1);
  return {at::empty_symint({channels, 1, kernel_size, kernel_size}, x.options()),
          at::empty_symint({channels}, x.options())};
}

std::tuple<Tensor, Tensor> meta_of_gelu_grad(Tensor&, const Tensor& x, const Tensor& weight, const OptionalTensor&,
                                             Tensor&) {
  return {at::empty_symint(weight.sym_sizes(), x.options()), at::empty_symint({x.sym_size(1)}, x.options())};
}

std::tuple<Tensor, Tensor> meta_of_pointwise_grad_weight(const Tensor& grad, const Tensor& x) {
  return {at::empty_symint({grad.sym_size(1), x.sym_size(1), 1, 1}, x.options()),
          at::empty_symint({grad.sym_size(1)}, x.options())};
}

Tensor& meta_of_gelu_grad_in_place(Tensor& x, const Tensor&) { return x; }

Tensor meta_of_pointwise(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const auto columns = weight.dim() == 3 && bias ? bias->sym_size(0) : weight.sym_size(0);
  return at::empty_symint({x.sym_size(0), columns, x.sym_size(2), x.sym_size(3)}, x.options(),
                          at::MemoryFormat::ChannelsLast);
}

Tensor meta_of_winograd(const Tensor& x, const Tensor&, int64_t outputs, const OptionalTensor&) {
  return at::empty_symint({x.sym_size(0), outputs, x.sym_size(2), x.sym_size(3)}, x.options(),
                          at::MemoryFormat::ChannelsLast);
}

Tensor& meta_of_out(const Tensor&, const Tensor&, const OptionalTensor&, Tensor& out) { return out; }

Tensor meta_of_bottleneck(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor& fc2_bias) {
  return meta_of_pointwise(x, fc2_bias, {});
}

Tensor meta_of_mixer(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     const Tensor&, const OptionalTensor&) {
  return meta(x, x, {});
}

Tensor meta_of_block(const Tensor& x, const OptionalTensor&, const OptionalTensor&, at::TensorList, int64_t,
                     const OptionalTensor&, at::TensorList, double, double) {
  return meta(x, x, {});
}

Tensor meta_of_similarities(const Tensor& x, const Tensor&, int64_t num_heads) {
  return at::empty_symint({x.sym_size(0), x.sym_size(2) * x.sym_size(3), num_heads}, x.options());
}

Tensor meta_of_sums(const Tensor& x, const Tensor&) {
  return at::empty_symint({x.sym_size(0), x.sym_size(1)}, x.options());
}

Tensor meta_of_norm(const Tensor& x, const OptionalTensor&, const OptionalTensor&, double) { return meta(x, x, {}); }

Tensor meta_of_context(const Tensor& x, const Tensor&, const Tensor&, int64_t, const Tensor&, const Tensor&, double) {
  return meta(x, x, {});
}

Tensor meta_of_scaled(const Tensor& x, const Tensor&, const Tensor&) { return meta(x, x, {}); }

Tensor& meta_in_place(Tensor& x) { return x; }

}  // namespace

TORCH_LIBRARY_IMPL(fcvit_mm_cpu, Meta, library) {
  library.impl("depthwise_conv2d", meta);
  library.impl("depthwise_conv2d.out", meta_of_out);
  library.impl("dwconv_gelu", meta);
  library.impl("dwconv_gelu.out", meta_of_out);
  library.impl("depthwise_conv2d_grad_weight", meta_of_grad_weight);
  library.impl("dwconv_gelu_grad_", meta_of_gelu_grad);
  library.impl("pointwise_conv2d_grad_weight", meta_of_pointwise_grad_weight);
  library.impl("gelu_grad_", meta_of_gelu_grad_in_place);
  library.impl("pointwise_conv2d", meta_of_pointwise);
  library.impl("pointwise_conv2d.out", meta_of_out);
  library.impl("winograd_conv2d", meta_of_winograd);
  library.impl("bottleneck", meta_of_bottleneck);
  library.impl("channel_mixer", meta_of_mixer);
  library.impl("fcvit_block", meta_of_block);
  library.impl("add_global_context", meta_of_context);
  library.impl("similarities", meta_of_similarities);
  library.impl("add_weighted", meta_of_scaled);
  library.impl("weighted_sums", meta_of_sums);
  library.impl("group_norm", meta_of_norm);
  library.impl("add_scaled", meta_of_scaled);
  library.impl("gelu_", meta_in_place);
}

}  // namespace fcvit_mm
