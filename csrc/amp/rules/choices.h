// The names that the string arguments of loss scaling take.
#pragma once

#include "common/choice.h"

namespace fulgurite {

/// When the tolerance for skipped updates is whole again: at any clean one (Apex), or when the scale grows (Megatron).
enum class Refill : int { kClean, kGrowth };
inline constexpr Named<Refill> kRefills[] = {
    {"clean", Refill::kClean},
    {"growth", Refill::kGrowth},
};

}  // namespace fulgurite
