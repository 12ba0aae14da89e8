// The stable counting sort of assignments by expert.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "moe/args.h"

namespace fulgurite {

/// Assignments that pay for waking a thread.
inline constexpr int64_t kPlanGroup = int64_t{1} << 14;

/// Experts that have, all alike, as many assignments.
inline int64_t experts_per_thread(int64_t assignments, int64_t E) {
  return std::max<int64_t>(kPlanGroup * E / std::max<int64_t>(assignments, 1), 1);
}

/// ids: (T,K) int32 or int64. permutation (T·K): sorted position → t·K + j; inverse (T·K): the way back; offsets (E+1).
/// Sentinels come last, with inverse −1, and so does what is beyond the first `capacity` assignments of an expert. inverse may
/// be null.
void sort_by_expert(const Tensor& ids, int64_t E, int32_t* permutation, int32_t* inverse,
                    int64_t* offsets, int64_t capacity = std::numeric_limits<int64_t>::max());

}  // namespace fulgurite
