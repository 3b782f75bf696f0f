// The operators fcvit_mm_cpu::..., without gradients: those are in the Python module beside this.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Optional.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace fcvit_mm {
namespace {

using at::Tensor;
using OptionalTensor = c10::optional<Tensor>;

// Values of the map that a thread copies, at most: a part of its second-level cache.
constexpr int64_t kScratchValues = 64 * 1024;
// Columns of a region, at most: wide maps would have regions of few rows, of which most is copied for their neighbours.
constexpr int64_t kRegionColumns = 64;
// Regions for each thread, at least, where rows suffice.
constexpr int64_t kRegionsPerThread = 2;
// Channels that the 3x3 kernel computes at a time: the values that it reads again must stay in the first-level cache.
constexpr int64_t kChannels3x3 = 256;

bool supported() {
  const std::string capability = at::get_cpu_capability();
  return capability == "AVX2" || capability == "AVX512";
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of this thread, kept for the next call.
float* thread_buffer(int64_t count) {
  thread_local std::unique_ptr<float[]> buffer;
  thread_local int64_t size = 0;
  if (size < count + 16) {
    buffer.reset(new float[count + 16]);
    size = count + 16;
  }
  void* start = buffer.get();
  size_t space = size * sizeof(float);
  return static_cast<float*>(std::align(64, count * sizeof(float), start, space));
}

void convolve_3x3(const Convolution& conv, int64_t batch) {
  const int64_t padded = divide_up(conv.channels, avx2::kLanes) * avx2::kLanes;
  std::vector<float> taps(padded * 9), zeros(padded);
  avx2::pack_taps(conv, 0, padded, taps.data());
  const int64_t pairs = divide_up(conv.height, 2), parts = divide_up(conv.channels, kChannels3x3);
  at::parallel_for(0, batch * parts * pairs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % pairs * 2, first = i / pairs % parts * kChannels3x3;
      avx2::convolve_3x3_rows(conv, i / pairs / parts, row, first, std::min(first + kChannels3x3, conv.channels),
                              taps.data(), zeros.data());
    }
  });
}

void convolve_large(const Convolution& conv, int64_t batch) {
  const int64_t kernel = conv.kernel, blocks = divide_up(conv.channels, avx2::kBlock);
  const int64_t strips = divide_up(conv.width, kRegionColumns), columns = divide_up(conv.width, strips);
  const int64_t most_rows = kScratchValues / ((columns + kernel - 1) * avx2::kBlock) - (kernel - 1);
  const int64_t regions = blocks * batch * strips, wanted = kRegionsPerThread * at::get_num_threads();
  int64_t bands = divide_up(conv.height, std::max<int64_t>(most_rows, 2 * kernel));
  bands = std::max(bands, std::min(divide_up(wanted, regions), divide_up(conv.height, 2 * kernel)));
  // An even number of rows: they are computed in pairs.
  const int64_t rows = divide_up(divide_up(conv.height, bands), 2) * 2;
  bands = divide_up(conv.height, rows);

  at::parallel_for(0, regions * bands, 1, [&](int64_t begin, int64_t end) {
    const int64_t taps_size = kernel * kernel * avx2::kBlock;
    float* taps = thread_buffer(taps_size + avx2::scratch_size(rows, columns, kernel));
    int64_t packed = -1;
    // Channels change slowest: their taps are packed once.
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i % bands, strip = i / bands % strips, image = i / bands / strips % batch;
      const int64_t block = i / bands / strips / batch;
      if (block != packed) {
        avx2::pack_taps(conv, block * avx2::kBlock, avx2::kBlock, taps);
        packed = block;
      }
      const avx2::Region region{image, block * avx2::kBlock, band * rows, std::min((band + 1) * rows, conv.height),
                                strip * columns, std::min((strip + 1) * columns, conv.width)};
      avx2::convolve_region(conv, region, taps, taps + taps_size);
    }
  });
}

void check(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const auto fits = [](const Tensor& tensor) { return tensor.scalar_type() == at::kFloat && tensor.device().is_cpu(); };
  TORCH_CHECK(supported(), "fcvit_mm_cpu: this processor has no AVX2");
  TORCH_CHECK(x.dim() == 4 && fits(x), "fcvit_mm_cpu: x is ", x.sizes(), " of ", x.scalar_type(), " on ", x.device(),
              ", expected (B, C, H, W) of float32 on cpu");
  TORCH_CHECK(weight.dim() == 4 && fits(weight) && weight.size(0) == x.size(1) && weight.size(1) == 1 &&
                  weight.size(2) == weight.size(3) && weight.size(2) % 2 == 1,
              "fcvit_mm_cpu: weight is ", weight.sizes(), " of ", weight.scalar_type(), " on ", weight.device(),
              ", expected (", x.size(1), ", 1, k, k) of float32 on cpu, k odd");
  TORCH_CHECK(!bias || (fits(*bias) && bias->dim() == 1 && bias->size(0) == x.size(1)),
              "fcvit_mm_cpu: bias is ", bias->sizes(), " of ", bias->scalar_type(), " on ", bias->device(),
              ", expected (", x.size(1), ") of float32 on cpu");
}

Tensor convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool gelu) {
  check(x, weight, bias);
  const Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), taps = weight.contiguous();
  const Tensor shift = bias ? bias->contiguous() : Tensor();
  Tensor out = at::empty(x.sizes(), x.options(), at::MemoryFormat::ChannelsLast);
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

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return convolve(x, weight, bias, false);
}

Tensor dwconv_gelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return convolve(x, weight, bias, true);
}

Tensor meta(const Tensor& x, const Tensor&, const OptionalTensor&) {
  return at::empty_symint(x.sym_sizes(), x.options(), at::MemoryFormat::ChannelsLast);
}

Tensor& meta_in_place(Tensor& x) { return x; }

Tensor& gelu_(Tensor& x) {
  TORCH_CHECK(supported(), "fcvit_mm_cpu: this processor has no AVX2");
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_non_overlapping_and_dense(),
              "fcvit_mm_cpu: x is not a dense tensor of float32");
  float* values = x.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](int64_t begin, int64_t end) { avx2::gelu(values + begin, end - begin); });
  return x;
}

}  // namespace

TORCH_LIBRARY(fcvit_mm_cpu, library) {
  library.def("supported() -> bool", supported);
  library.def("depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("dwconv_gelu(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("gelu_(Tensor(a!) x) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(fcvit_mm_cpu, CPU, library) {
  library.impl("depthwise_conv2d", depthwise_conv2d);
  library.impl("dwconv_gelu", dwconv_gelu);
  library.impl("gelu_", gelu_);
}

TORCH_LIBRARY_IMPL(fcvit_mm_cpu, Meta, library) {
  library.impl("depthwise_conv2d", meta);
  library.impl("dwconv_gelu", meta);
  library.impl("gelu_", meta_in_place);
}

}  // namespace fcvit_mm
