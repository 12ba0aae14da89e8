// Storage types of the kernels. The 16-bit ones are bit patterns; convert.h turns vectors of them into float32.
#pragma once

#include <cstdint>

namespace fulgurite {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

/// float64 adds in float64, everything else in float32.
template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateOf<T>::type;

enum class Dtype : int { kFloat64, kFloat32, kBFloat16, kFloat16 };

}  // namespace fulgurite
