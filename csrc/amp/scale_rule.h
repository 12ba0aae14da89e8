// The rule of the loss scale from the arguments of update_scale_.
#pragma once

#include <limits>

#include "amp/args.h"
#include "amp/rules/scale.h"
#include "common/check_choice.h"

namespace fulgurite {

inline ScaleRule scale_rule(const UpdateScaleArgs& a) {
  return {a.growth_factor,
          a.backoff_factor,
          a.growth_interval,
          static_cast<int32_t>(a.max_hysteresis),
          choice_of(kRefills, a.refill),
          a.min_scale,
          a.max_scale.value_or(std::numeric_limits<double>::infinity())};
}

}  // namespace fulgurite
