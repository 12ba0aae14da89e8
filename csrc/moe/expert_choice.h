// Expert choice: experts take tokens. Validation of its calls, for Meta, CPU and CUDA.
#pragma once

#include "moe/args.h"

namespace fulgurite {

void check_expert_choice(const ExpertChoiceArgs& args);
void check_expert_choice_backward(const ExpertChoiceBackwardArgs& args);

}  // namespace fulgurite
