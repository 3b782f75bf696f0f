// The kernels for processors with AVX-512. Passes over maps have no AVX-512 form, because memory bounds them. No standard
// templates here: compiled for these instructions, a copy of one might be linked into code that runs on other processors.
#include <immintrin.h>

#include "kernels.h"

#define INSTANCE avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own header
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE inline __attribute__((always_inline))

// The order of these includes matters.
#include "vectors_avx512.h"
#include "vectors.h"
#include "large_convolution_kernels.h"
#include "convolution_kernels.h"
#include "product_kernels.h"
#include "panel_kernels.h"
#include "winograd_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
