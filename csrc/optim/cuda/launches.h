// The optimizer's launches, for code that sees no CUDA. Each returns an error's text, or null.
#pragma once

#include "optim/cuda/problem.h"

namespace fulgurite::cuda {

const char* run_adamw_count(const AdamwCountProblem& p, void* stream);
const char* run_adamw_update(const AdamwUpdateProblem& p, void* stream);
const char* run_adamw_8bit_update(const AdamwUpdateProblem& p, void* stream);
const char* run_split_master(const SplitProblem& p, int64_t n, void* stream);
const char* run_join_master(const SplitProblem& p, int64_t n, void* stream);

}  // namespace fulgurite::cuda
