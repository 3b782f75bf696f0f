// The operators fcvit_mm_cpu::... of forward passes, and the schemas of all. gradients.py connects them for training.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "operators.h"

namespace fcvit_mm {
namespace {

Tensor& convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool gelu, Tensor& out) {
  check_depthwise(x, weight, bias);
  check_output("out", out, x.sizes(), x);
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), taps = weight.contiguous();
  const Tensor shift = bias ? bias->contiguous() : Tensor();
  if (out.numel() == 0) {
    return out;
  }
  const Convolution conv{map.const_data_ptr<float>(), taps.const_data_ptr<float>(),
                         bias ? shift.const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>(),
                         x.size(2), x.size(3), x.size(1), weight.size(2), gelu};
  if (conv.kernel == 3) {
    convolve_3x3(conv, x.size(0));
  } else {
    convolve_large(conv, x.size(0));
  }
  return out;
}

Tensor& depthwise_conv2d_out(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Tensor& out) {
  return convolve(x, weight, bias, false, out);
}

Tensor& dwconv_gelu_out(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Tensor& out) {
  return convolve(x, weight, bias, true, out);
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  Tensor out = empty_map(x, x.size(1));
  return convolve(x, weight, bias, false, out);
}

Tensor dwconv_gelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  Tensor out = empty_map(x, x.size(1));
  return convolve(x, weight, bias, true, out);
}

// Returns the number of outputs of a 1x1 convolution, whose weight may be packed if there is a bias.
int64_t columns_of(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_map(x);
  TORCH_CHECK(weight.dim() != 3 || bias, "fcvit_mm_cpu: weight is ", weight.sizes(),
              " without a bias, expected (D, C, 1, 1)");
  return bias ? check_columns("weight", weight, *bias, x.size(1)) : check_pointwise("weight", weight, x.size(1));
}

Tensor& pointwise_conv2d_out(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Tensor& out) {
  const int64_t columns = columns_of(x, weight, bias);
  if (bias) {
    check_shape("bias", *bias, {columns});
  }
  check_output("out", out, {x.size(0), columns, x.size(2), x.size(3)}, x);
  if (out.numel() == 0) {
    return out;
  }
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), shift = bias ? bias->contiguous() : Tensor();
  Product product{};
  product.rows = map.const_data_ptr<float>();
  product.row_stride = product.depth = x.size(1);
  product.count = x.size(0) * x.size(2) * x.size(3);
  product.columns = product.out_stride = columns;
  product.bias = bias ? shift.const_data_ptr<float>() : nullptr;
  product.out = out.mutable_data_ptr<float>();
  if (weight.dim() == 3) {
    multiply_all(product, {weight.const_data_ptr<float>(), 0, false, true});
    return out;
  }
  // A transposed view, which gradients use, is read without a copy.
  const Tensor matrix = weight.flatten(1);
  const bool turned = matrix.stride(1) != 1 && matrix.stride(0) == 1;
  const Tensor rows = turned ? matrix : matrix.contiguous();
  multiply_all(product, {rows.const_data_ptr<float>(), turned ? rows.stride(1) : product.depth, turned, false});
  return out;
}

Tensor pointwise_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  Tensor out = empty_map(x, columns_of(x, weight, bias));
  return pointwise_conv2d_out(x, weight, bias, out);
}

Tensor bottleneck(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                  const Tensor& fc2_bias) {
  check_map(x);
  const bool packed = check_both(fc1_weight, fc2_weight);
  const int64_t hidden = check_columns("fc1_weight", fc1_weight, fc1_bias, x.size(1));
  const int64_t columns = check_columns("fc2_weight", fc2_weight, fc2_bias, hidden);
  check_shape("fc1_bias", fc1_bias, {hidden});
  check_shape("fc2_bias", fc2_bias, {columns});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor others[] = {fc1_weight.contiguous(), fc1_bias.contiguous(), fc2_weight.contiguous(),
                           fc2_bias.contiguous()};
  Tensor out = empty_map(x, columns);
  if (out.numel() == 0) {
    return out;
  }
  Product first{}, second{};
  first.rows = map.const_data_ptr<float>();
  first.row_stride = first.depth = x.size(1);
  first.count = x.size(0) * x.size(2) * x.size(3);
  first.columns = first.out_stride = second.row_stride = second.depth = hidden;
  first.bias = others[1].const_data_ptr<float>();
  second.columns = second.out_stride = columns;
  second.bias = others[3].const_data_ptr<float>();
  second.out = out.mutable_data_ptr<float>();
  first.gelu = second.gelu = true;
  multiply_twice(first, others[0].const_data_ptr<float>(), second, others[2].const_data_ptr<float>(), packed);
  return out;
}

Tensor channel_mixer(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& dw_weight,
                     const Tensor& dw_bias, const Tensor& fc2_weight, const Tensor& fc2_bias,
                     const OptionalTensor& shortcut) {
  check_map(x);
  const bool packed = check_both(fc1_weight, fc2_weight);
  const int64_t hidden = check_columns("fc1_weight", fc1_weight, fc1_bias, x.size(1));
  check_shape("fc1_bias", fc1_bias, {hidden});
  check_shape("dw_bias", dw_bias, {hidden});
  if (packed) {
    check_taps("dw_weight", dw_weight, hidden, 3);
  } else {
    check_shape("dw_weight", dw_weight, {hidden, 1, 3, 3});
  }
  if (packed) {
    check_columns("fc2_weight", fc2_weight, fc2_bias, hidden);
  } else {
    check_shape("fc2_weight", fc2_weight, {x.size(1), hidden, 1, 1});
  }
  check_shape("fc2_bias", fc2_bias, {x.size(1)});
  if (shortcut) {
    check_shape("shortcut", *shortcut, x.sizes());
  }
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor added = shortcut ? shortcut->contiguous(at::MemoryFormat::ChannelsLast) : Tensor();
  const Tensor others[] = {fc1_weight.contiguous(), fc1_bias.contiguous(), dw_weight.contiguous(),
                           dw_bias.contiguous(), fc2_weight.contiguous(), fc2_bias.contiguous()};
  Tensor out = empty_map(x, x.size(1));
  if (out.numel() == 0) {
    return out;
  }
  if (hidden == 0) {
    out.copy_(fc2_bias.view({-1, 1, 1}));
    return shortcut ? out.add_(added) : out;
  }
  const auto values = [&](int i) { return others[i].const_data_ptr<float>(); };
  mix({map.const_data_ptr<float>(), out.mutable_data_ptr<float>(), x.size(0), x.size(2), x.size(3), x.size(1),
       hidden, packed, false, values(0), values(1), values(2), values(3), values(4), values(5),
       shortcut ? added.const_data_ptr<float>() : nullptr});
  return out;
}

// Number of parameters of a token mix, and of a channel mixer; their order is that of TokenMix and Mixer.
constexpr int64_t kOfTokenMix = 12, kOfChannelMixer = 6;

Tensor fcvit_block(const Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                   at::TensorList mixes, int64_t num_heads, const OptionalTensor& scale, at::TensorList channel_mixer,
                   double eps, double context_eps) {
  check_heads(x, num_heads);
  const int64_t channels = x.size(1);
  TORCH_CHECK(!mixes.empty() && mixes.size() % kOfTokenMix == 0, "fcvit_mm_cpu: mixes has ", mixes.size(),
              " tensors, expected ", kOfTokenMix, " for each token mix");
  TORCH_CHECK(channel_mixer.size() == kOfChannelMixer, "fcvit_mm_cpu: channel_mixer has ", channel_mixer.size(),
              " tensors, expected ", kOfChannelMixer);
  std::vector<Tensor> kept;  // owns the contiguous copies
  const auto vector = [&](const char* name, const Tensor& tensor, int64_t count) {
    check_shape(name, tensor, {count});
    kept.push_back(tensor.contiguous());
    return kept.back().const_data_ptr<float>();
  };
  const auto vector_or_null = [&](const char* name, const OptionalTensor& tensor) {
    return tensor ? vector(name, *tensor, channels) : nullptr;
  };
  const auto columns = [&](const char* name, const Tensor& weight, int64_t count, int64_t depth) {
    check_shape(name, weight, {divide_up(count, kernels().block), depth, kernels().block});
    TORCH_CHECK(weight.is_contiguous(), "fcvit_mm_cpu: ", name, " is not contiguous");
    return weight.const_data_ptr<float>();
  };
  const bool paired = channel_mixer[0].scalar_type() == at::kBFloat16;
  TORCH_CHECK(!paired || kernels().multiply_pairs, "fcvit_mm_cpu: expand_weight is of BFloat16, expected Float: this "
              "processor, or the kernels chosen, have no instructions for bfloat16");
  // The same for all 1x1 convolutions but those of the context: if one is packed as pairs of bfloat16, all must be.
  const auto pairs = [&](const char* name, const Tensor& weight, int64_t count, int64_t depth) {
    if (!paired) {
      return columns(name, weight, count, depth);
    }
    check_shape(name, weight, {divide_up(count, kernels().block), divide_up(depth, 2), kernels().block, 2}, at::kBFloat16);
    TORCH_CHECK(weight.is_contiguous(), "fcvit_mm_cpu: ", name, " is not contiguous");
    return static_cast<const float*>(weight.const_data_ptr());
  };
  const auto taps = [&](const char* name, const Tensor& weight, int64_t count, int64_t kernel) {
    check_taps(name, weight, count, kernel);
    return weight.const_data_ptr<float>();
  };
  // Taps of token mixes, as pairs if the 1x1 weights are pairs.
  const auto token_taps = [&](const char* name, const Tensor& weight, int64_t count, int64_t kernel) {
    if (!paired) {
      return taps(name, weight, count, kernel);
    }
    const int64_t vectors = divide_up(count, kernels().block) * (kernels().block / kernels().lanes);
    check_shape(name, weight, {vectors, kernel * divide_up(kernel, 2), kernels().lanes, 2}, at::kBFloat16);
    TORCH_CHECK(weight.is_contiguous(), "fcvit_mm_cpu: ", name, " is not contiguous");
    return static_cast<const float*>(weight.const_data_ptr());
  };
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor out = empty_map(x, channels);
  Block block{};
  block.x = map.const_data_ptr<float>();
  block.heads = num_heads;
  block.norm_weight = vector_or_null("norm_weight", norm_weight);
  block.norm_bias = vector_or_null("norm_bias", norm_bias);
  block.scale = vector_or_null("scale", scale);
  block.eps = eps;
  block.context_eps = context_eps;
  for (size_t i = 0; i < mixes.size(); i += kOfTokenMix) {
    const auto of = [&](int64_t index) -> const Tensor& { return mixes[i + index]; };
    const int64_t dims = paired ? 4 : 3;
    TORCH_CHECK(of(6).dim() == dims, "fcvit_mm_cpu: taps is ", of(6).sizes(), ", expected ", dims, " dimensions");
    // k rows of k taps each, or of (k + 1) / 2 pairs.
    const double area = static_cast<double>(paired ? 2 * of(6).size(1) : of(6).size(1));
    const int64_t kernel = paired ? std::lround(std::sqrt(area + 0.25) - 0.5) : std::lround(std::sqrt(area));
    TORCH_CHECK(kernel % 2 == 1 && kernel > 3, "fcvit_mm_cpu: taps are of a kernel of ", kernel,
                ", expected an odd one above 3");
    const int64_t candidates = of(1).numel(), hidden = of(9).numel();
    block.mixes.push_back({candidates / 2,
                           columns("context_fc1_weight", of(0), candidates, channels),
                           vector("context_fc1_bias", of(1), candidates / 2 * 2),
                           columns("context_fc2_weight", of(2), channels, candidates / 2),
                           vector("context_fc2_bias", of(3), channels),
                           vector("rescale_weight", of(4), num_heads),
                           vector("rescale_bias", of(5), num_heads),
                           kernel,
                           token_taps("taps", of(6), channels, kernel),
                           vector("taps_bias", of(7), channels),
                           hidden,
                           pairs("fc1_weight", of(8), hidden, channels),
                           vector("fc1_bias", of(9), hidden),
                           pairs("fc2_weight", of(10), channels, hidden),
                           vector("fc2_bias", of(11), channels)});
  }
  const Tensor* const of = channel_mixer.data();
  const int64_t hidden = of[1].numel();
  TORCH_CHECK(hidden > 0, "fcvit_mm_cpu: the channel mixer has no expanded channels");
  block.channel_mixer = {nullptr, out.mutable_data_ptr<float>(), x.size(0), x.size(2), x.size(3), channels, hidden, true, paired,
                         pairs("expand_weight", of[0], hidden, channels), vector("expand_bias", of[1], hidden),
                         taps("mixer_taps", of[2], hidden, 3), vector("mixer_taps_bias", of[3], hidden),
                         pairs("reduce_weight", of[4], channels, hidden), vector("reduce_bias", of[5], channels),
                         nullptr};
  if (out.numel() > 0) {
    compute_block(block);
  }
  return out;
}

Tensor add_global_context(const Tensor& x, const Tensor& means, const Tensor& context, int64_t num_heads,
                          const Tensor& rescale_weight, const Tensor& rescale_bias, double eps) {
  check_heads(x, num_heads);
  const int64_t channels = x.size(1);
  check_shape("means", means, {x.size(0), channels});
  check_shape("context", context, {x.size(0), channels});
  check_shape("rescale_weight", rescale_weight, {num_heads});
  check_shape("rescale_bias", rescale_bias, {num_heads});
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor others[] = {means.contiguous(), context.contiguous(), rescale_weight.contiguous(),
                           rescale_bias.contiguous()};
  Tensor out = empty_map(x, channels);
  if (out.numel() == 0) {
    return out;
  }
  const auto values = [&](int i) { return others[i].const_data_ptr<float>(); };
  add_contexts({map.const_data_ptr<float>(), out.mutable_data_ptr<float>(), x.size(0), x.size(2) * x.size(3), channels,
                num_heads, values(0), values(1), values(2), values(3), eps});
  return out;
}

Tensor winograd_conv2d(const Tensor& x, const Tensor& panels, int64_t outputs, const OptionalTensor& bias) {
  check_map(x);
  const int64_t channels = x.size(1);
  check_shape("panels", panels,
              {kTilePoints, divide_up(outputs, kernels().block), channels, kernels().block});
  if (bias) {
    check_shape("bias", *bias, {outputs});
  }
  const float* const values = panels.const_data_ptr<float>();
  TORCH_CHECK(panels.is_contiguous(), "fcvit_mm_cpu: panels is not contiguous");
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor added = bias ? bias->contiguous() : Tensor();
  Tensor out = empty_map(x, outputs);
  if (out.numel() == 0 || channels == 0) {
    return bias ? out.copy_(added.view({-1, 1, 1})) : out.zero_();
  }
  convolve_tiles({map.const_data_ptr<float>(), values, bias ? added.const_data_ptr<float>() : nullptr,
                  out.mutable_data_ptr<float>(), x.size(0), x.size(2), x.size(3), channels, outputs});
  return out;
}

// GroupNorm of one group: statistics, then a factor and a bias for each channel. Images one after the other, while they
// are in the cache, if there are enough of them for the threads. Sums do not depend on that.
Tensor group_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  check_map(x);
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.size(2) * x.size(3);
  for (const auto& [name, vector] : {std::make_pair("weight", &weight), std::make_pair("bias", &bias)}) {
    if (*vector) {
      check_shape(name, **vector, {channels});
    }
  }
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor factors = weight ? weight->contiguous() : Tensor(), shifts = bias ? bias->contiguous() : Tensor();
  Tensor out = empty_map(x, channels);
  if (out.numel() == 0) {
    return out;
  }
  const float* const from = map.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  const float* const own_factors = weight ? factors.const_data_ptr<float>() : nullptr;
  const float* const own_shifts = bias ? shifts.const_data_ptr<float>() : nullptr;
  const int64_t size = positions * channels, rows = rows_of_block(channels);
  const int64_t blocks = divide_up(positions, rows);
  std::vector<double> sums(batch * blocks), squares(batch * blocks);
  std::vector<float> means(batch), scales(batch * channels), origins(batch);
  const std::vector<float> zeros(own_shifts ? 0 : channels);
  for (int64_t image = 0; image < batch; ++image) {
    origins[image] = find_shift(from + image * size, size);
  }
  const auto add_block = [&](int64_t i) {
    const int64_t image = i / blocks, row = i % blocks * rows;
    kernels().add_moments(from + image * size + row * channels, std::min(rows, positions - row) * channels,
                          origins[image], sums[i], squares[i]);
  };
  const auto finish_image = [&](int64_t image) {
    const double* const of_image = sums.data() + image * blocks;
    const double shifted = std::accumulate(of_image, of_image + blocks, 0.) / size;
    const double* const of_squares = squares.data() + image * blocks;
    const double variance = std::accumulate(of_squares, of_squares + blocks, 0.) / size - shifted * shifted;
    const double inverse = 1 / std::sqrt(std::max(variance, 0.) + eps);
    means[image] = static_cast<float>(shifted + origins[image]);
    for (int64_t channel = 0; channel < channels; ++channel) {
      scales[image * channels + channel] = static_cast<float>(inverse * (own_factors ? own_factors[channel] : 1.));
    }
  };
  const auto scale_block = [&](int64_t i) {
    const int64_t image = i / blocks, row = i % blocks * rows, start = image * size + row * channels;
    kernels().scale(from + start, means[image], scales.data() + image * channels, own_shifts ? own_shifts : zeros.data(),
                std::min(rows, positions - row), channels, to + start);
  };
  const auto for_all = [](int64_t count, const auto& compute) {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        compute(i);
      }
    });
  };
  if (batch % at::get_num_threads() == 0) {
    for_all(batch, [&](int64_t image) {
      for (int64_t i = image * blocks; i < (image + 1) * blocks; ++i) {
        add_block(i);
      }
      finish_image(image);
      for (int64_t i = image * blocks; i < (image + 1) * blocks; ++i) {
        scale_block(i);
      }
    });
  } else {
    for_all(batch * blocks, add_block);
    for_all(batch, finish_image);
    for_all(batch * blocks, scale_block);
  }
  return out;
}

Tensor add_scaled(const Tensor& x, const Tensor& branch, const Tensor& scale) {
  check_map(x);
  check_shape("branch", branch, x.sizes());
  check_shape("scale", scale, {x.size(1)});
  const auto layout = at::MemoryFormat::ChannelsLast;
  const Tensor map = x.contiguous(layout), other = branch.contiguous(layout), factors = scale.contiguous();
  Tensor out = empty_map(x, x.size(1));
  if (out.numel() == 0) {
    return out;
  }
  const int64_t channels = x.size(1);
  const float *from = map.const_data_ptr<float>(), *added = other.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel() / channels, divide_up(kBlockValues, channels), [&](int64_t begin, int64_t end) {
    const int64_t start = begin * channels;
    kernels().add_scaled(from + start, added + start, factors.const_data_ptr<float>(), end - begin, channels, to + start);
  });
  return out;
}

Tensor& gelu_(Tensor& x) {
  TORCH_CHECK(supported(), "fcvit_mm_cpu: this processor has no AVX2");
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_non_overlapping_and_dense(),
              "fcvit_mm_cpu: x is not a dense tensor of float32");
  float* values = x.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) { kernels().gelu(values + begin, end - begin); });
  return x;
}

}  // namespace

TORCH_LIBRARY(fcvit_mm_cpu, library) {
  library.def("supported() -> bool", supported);
  library.def("instructions() -> str", [] { return std::string(kernels().instructions); });
  library.def("choose_instructions(str instructions) -> ()", choose_kernels);
  library.def("panel_width() -> int", [] { return kernels().block; });
  library.def("multiplies_bfloat16() -> bool", [] { return kernels().multiply_pairs != nullptr; });
  library.def("depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("depthwise_conv2d.out(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)");
  library.def("dwconv_gelu(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("dwconv_gelu.out(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)");
  library.def("depthwise_conv2d_grad_weight(Tensor grad, Tensor x, int kernel_size) -> (Tensor, Tensor)");
  library.def(
      "dwconv_gelu_grad_(Tensor(a!) grad, Tensor x, Tensor weight, Tensor? bias, *, Tensor(b!) activated) "
      "-> (Tensor, Tensor)");
  library.def("pointwise_conv2d_grad_weight(Tensor grad, Tensor x) -> (Tensor, Tensor)");
  library.def("gelu_grad_(Tensor(a!) x, Tensor grad) -> Tensor(a!)");
  library.def("pointwise_conv2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("pointwise_conv2d.out(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)");
  library.def("winograd_conv2d(Tensor x, Tensor panels, int outputs, Tensor? bias) -> Tensor");
  library.def(
      "bottleneck(Tensor x, Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias) -> Tensor");
  library.def(
      "channel_mixer(Tensor x, Tensor fc1_weight, Tensor fc1_bias, Tensor dw_weight, Tensor dw_bias, "
      "Tensor fc2_weight, Tensor fc2_bias, Tensor? shortcut=None) -> Tensor");
  library.def(
      "fcvit_block(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor[] mixes, int num_heads, Tensor? scale, "
      "Tensor[] channel_mixer, float eps, float context_eps) -> Tensor");
  library.def(
      "add_global_context(Tensor x, Tensor means, Tensor context, int num_heads, Tensor rescale_weight, "
      "Tensor rescale_bias, float eps) -> Tensor");
  library.def("similarities(Tensor x, Tensor vectors, int num_heads) -> Tensor");
  library.def("add_weighted(Tensor x, Tensor weights, Tensor vectors) -> Tensor");
  library.def("weighted_sums(Tensor x, Tensor weights) -> Tensor");
  library.def("group_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor");
  library.def("add_scaled(Tensor x, Tensor branch, Tensor scale) -> Tensor");
  library.def("gelu_(Tensor(a!) x) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(fcvit_mm_cpu, CPU, library) {
  library.impl("depthwise_conv2d", depthwise_conv2d);
  library.impl("depthwise_conv2d.out", depthwise_conv2d_out);
  library.impl("dwconv_gelu", dwconv_gelu);
  library.impl("dwconv_gelu.out", dwconv_gelu_out);
  library.impl("pointwise_conv2d", pointwise_conv2d);
  library.impl("pointwise_conv2d.out", pointwise_conv2d_out);
  library.impl("winograd_conv2d", winograd_conv2d);
  library.impl("bottleneck", bottleneck);
  library.impl("channel_mixer", channel_mixer);
  library.impl("fcvit_block", fcvit_block);
  library.impl("add_global_context", add_global_context);
  library.impl("group_norm", group_norm);
  library.impl("add_scaled", add_scaled);
  library.impl("gelu_", gelu_);
}

}  // namespace fcvit_mm
