// The kernels for processors with AVX2 and FMA. No standard templates here: compiled for these instructions, a copy of one
// might be linked into code that runs on other processors.
#include <immintrin.h>

#include "kernels.h"

#define INSTANCE avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE inline __attribute__((always_inline))

// The order of these includes matters.
#include "vectors_avx2.h"
#include "vectors.h"
#include "large_convolution_kernels.h"
#include "convolution_kernels.h"
#include "map_kernels.h"
#include "product_kernels.h"
#include "panel_kernels.h"
#include "winograd_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
