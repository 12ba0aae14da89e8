// The optimizer's launches, for code that sees no CUDA. Each returns an error's text, or null.
#pragma once

#include <vector>

#include "optim/cuda/problem.h"

namespace fulgurite::cuda {

/// Writes the bytes of a table (table.h) to `to`, where `kept` was written before, or nothing: those that differ.
const char* run_write_table(const std::vector<unsigned char>& kept,
                            const std::vector<unsigned char>& now, unsigned char* to, void* stream);
const char* run_adamw_count(const AdamwCountProblem& p, void* stream);
const char* run_adamw_update(const AdamwUpdateProblem& p, void* stream);
const char* run_adamw_8bit_update(const AdamwUpdateProblem& p, void* stream);
const char* run_split_master(const SplitProblem& p, int64_t n, void* stream);
const char* run_join_master(const SplitProblem& p, int64_t n, void* stream);

}  // namespace fulgurite::cuda
