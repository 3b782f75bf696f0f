// Selection of the kernels that run.
#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include "threads.h"

namespace fcvit_mm {
namespace {

Kernels of_avx2() {
  Kernels kernels{"AVX2"};
  avx2::set_convolutions(kernels);
  avx2::set_products(kernels);
  avx2::set_winograd(kernels);
  avx2::set_maps(kernels);
  return kernels;
}

Kernels of_avx512() {
  Kernels kernels = of_avx2();
  kernels.instructions = "AVX512";
  avx512::set_convolutions(kernels);
  avx512::set_products(kernels);
  avx512::set_winograd(kernels);
#if COMPILES_PAIRS
  if (__builtin_cpu_supports("avx512bf16")) {
    avx512_bf16::set_pairs(kernels);
  }
#endif
  return kernels;
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}

// A table is filled by code that is compiled for its processors, so only when it is requested.
const Kernels* of(const std::string& instructions) {
  if (instructions == "AVX512") {
    static const Kernels kernels = of_avx512();
    return &kernels;
  }
  static const Kernels kernels = of_avx2();
  return &kernels;
}

const Kernels*& chosen() {
  static const Kernels* kernels = of(at::get_cpu_capability());
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

void choose_kernels(const std::string& instructions) {
  TORCH_CHECK(instructions == "AVX2" || (instructions == "AVX512" && has_avx512()), "fcvit_mm_cpu: instructions is ",
              instructions, ", expected AVX2", has_avx512() ? " or AVX512" : ": this processor has no AVX512");
  chosen() = of(instructions);
}

}  // namespace fcvit_mm
