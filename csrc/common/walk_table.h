// Walks over lists of tensors as kernels of every device see them; common/walk.h builds them, simd/walk.h goes through them.
#pragma once

#include <cstdint>

namespace fulgurite {

/// One tensor of a list, with its operands.
struct Walk {
  int64_t position;  // of element 0
  int64_t numel;
  int32_t dims;    // 0: every operand is dense in one common order
  int64_t layout;  // of the table: sizes [dims], then strides [dims][operands], last fastest
};

/// Tensors begin at multiples of this, so that a tensor of one element weighs as much as what it
/// costs.
inline constexpr int64_t kWalkGrain = 64;

}  // namespace fulgurite
