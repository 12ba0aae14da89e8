#pragma once

#include <cstdint>

#include "simd/types.h"

namespace fulgurite {

struct PeakParams {
  Dtype dtype;
  int64_t rounds;
};
/// Runs products of operands that are at hand; how many multiplications and additions these were.
using PeakFn = double(const PeakParams&);

}  // namespace fulgurite
