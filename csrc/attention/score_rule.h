// The rule of which pairs are kept (rules/scores.h), from an operator's arguments.
#pragma once

#include "attention/args.h"
#include "attention/rules/scores.h"

namespace fulgurite {

/// Right-aligned to four dimensions; broadcast dimensions get stride 0.
ScoreTensor score_tensor(const OptionalTensor& tensor);
/// Everything of a rule but M and shift, which belong to a sequence; `widest` bounds every distance between positions.
ScoreRule score_rule(const ScoreArgs& scores, int64_t widest);

}  // namespace fulgurite
