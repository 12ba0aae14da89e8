// What the optimizer's kernels are told: the problem alone (rules/problem.h), and which piece of it.
#pragma once

#include "optim/rules/problem.h"
#include "simd/walk.h"

namespace fulgurite {

/// Updates the elements at positions [first, last).
using AdamwTaskFn = void(const AdamwProblem&, int64_t first, int64_t last);

/// Updates the elements at positions [first, last), both at the edge of a block.
using Adamw8bitTaskFn = void(const Adamw8bitProblem&, int64_t first, int64_t last);

/// Elements [first, last).
using SplitTaskFn = void(const SplitProblem&, int64_t first, int64_t last);

}  // namespace fulgurite
