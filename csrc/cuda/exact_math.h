// Math (common/value.h) of the operations that every device rounds alike.
#pragma once

#include "cuda/cux.h"

namespace cux {

struct ExactMath {
  __device__ static float sqrt(float x) {
#if defined(__CUDACC__)
    return __fsqrt_rn(x);
#else
    return std::sqrt(x);
#endif
  }
  __device__ static float fma(float a, float b, float c) {
#if defined(__CUDACC__)
    return __fmaf_rn(a, b, c);
#else
    return std::fma(a, b, c);
#endif
  }
  __device__ static float abs(float x) { return fabsf(x); }
  __device__ static float max(float a, float b) { return a > b ? a : b; }
  __device__ static float min(float a, float b) { return a < b ? a : b; }
};

}  // namespace cux
