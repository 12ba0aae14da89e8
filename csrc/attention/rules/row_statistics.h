// When the lse of a row is too coarse to weigh its pairs by, on every device.
//
// The backward makes P = exp(s − lse), and what lse was rounded by is a relative error of P, the same for all of a row: ½ulp(lse),
// up to |lse|·u with u = 2^-24 in float32. At 10^4 a row of P sums to 1 to 3 digits; from 2^24 on lse = max + log Σ is the
// maximum alone, and P is 1 for every pair that shares it. So rows with a larger lse than below have maximum and sum made once
// more, apart, and P = exp(s − max)/Σ exp(s − max), which has the digits of the scores themselves.
//
//   float64, float32   16     P off by at most 8u, what a row of 3000 equal scores has (lse 8); plain softmax has 2u to 4u
//   16 bits            256    128·2^-24, a 64th of float16's u = 2^-11 and a 256th of bfloat16's
#pragma once

#include "common/host_device.h"
#include "simd/types.h"

namespace fulgurite {

/// `dtype`: of the queries. Infinities and NaN are not coarse: nothing would be finer.
template <class T>
FULGURITE_HOST_DEVICE bool lse_is_coarse(T lse, Dtype dtype) {
  const bool wide = dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64;
  const T size = lse < 0 ? -lse : lse;
  return size > (wide ? T(16) : T(256)) && size < static_cast<T>(__builtin_inf());
}

}  // namespace fulgurite
