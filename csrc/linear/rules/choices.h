// The names that the family's string arguments take.
#pragma once

#include "common/choice.h"

namespace fulgurite {

enum class ConvActivation : int { kNone, kSilu };
inline constexpr Named<ConvActivation> kConvActivations[] = {
    {"none", ConvActivation::kNone},
    {"silu", ConvActivation::kSilu},
};

enum class FavorKind : int { kPositive, kHyperbolic };
inline constexpr Named<FavorKind> kFavorKinds[] = {
    {"positive", FavorKind::kPositive},
    {"hyperbolic", FavorKind::kHyperbolic},
};

}  // namespace fulgurite
