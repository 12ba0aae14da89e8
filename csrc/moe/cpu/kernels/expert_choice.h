// What the kernels of expert choice are told.
#pragma once

#include "moe/cpu/kernels/params.h"

namespace fulgurite {

struct ExpertChoiceForward {
  void* scores;  // (E,T)
};

struct ExpertChoiceBackward {
  const uint8_t* taken;     // (T): whether an expert took the token
  const void* grad_scores;  // (T,E) contiguous
  void* grad_logits;        // (T,E)
};

struct ExpertChoiceParams : ExpertChoiceProblem, ExpertChoiceForward, ExpertChoiceBackward {};
/// Tokens [first, last) of a call.
using ExpertChoiceFn = void(const ExpertChoiceParams&, int64_t first, int64_t last, void* scratch);

/// Rows of padded_row(E) float64 that one task has as scratch: two, and one for each lane of as many float32.
inline constexpr int64_t kExpertChoiceRows = 2 + 16;

}  // namespace fulgurite
