// The names that attention's string arguments take.
#pragma once

#include "common/choice.h"

namespace fulgurite {

enum class ScoreKind : int { kSoftmax, kRelu2, kLaplace };
inline constexpr Named<ScoreKind> kScoreKinds[] = {
    {"softmax", ScoreKind::kSoftmax},
    {"relu2", ScoreKind::kRelu2},
    {"laplace", ScoreKind::kLaplace},
};

/// Where the diagonal lies if there are not as many queries as keys.
enum class Align : int { kBottomRight, kTopLeft };
inline constexpr Named<Align> kAligns[] = {
    {"bottom_right", Align::kBottomRight},
    {"top_left", Align::kTopLeft},
};

}  // namespace fulgurite
