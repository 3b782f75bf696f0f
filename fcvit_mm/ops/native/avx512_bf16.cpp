// Matrix products and large depth-wise convolutions of bfloat16, for processors that have instructions for them. No
// standard templates here, as in avx512.cpp.
#include <immintrin.h>

#include "kernels.h"

#if COMPILES_PAIRS
#define INSTANCE avx512_bf16
#define PAIRS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own header
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma")
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE inline __attribute__((always_inline))

// The order of these includes matters.
#include "vectors_avx512.h"
#include "vectors.h"
#include "large_convolution_kernels.h"
#include "product_kernels.h"
#include "pair_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
