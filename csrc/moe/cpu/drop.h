// Who stays where an expert has room for `capacity` assignments only.
#pragma once

#include "moe/args.h"

namespace fulgurite {

/// ids (T,K) int32 with E in place of sentinels and of what finds no room, by any order but that of
/// the tokens, which the plan counts off itself.
Tensor drop_overflow(const PlanArgs& args);

}  // namespace fulgurite
