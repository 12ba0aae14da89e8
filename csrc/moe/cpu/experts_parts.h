// The parts that a call of the experts goes through (moe/plan.h), and what each has of the call's tensors.
#pragma once

#include <vector>

#include "common/check.h"
#include "moe/check.h"
#include "moe/cpu/sorted.h"
#include "moe/plan.h"

namespace fulgurite {

inline ExpertSizes expert_sizes(const ExpertsShape& s) {
  return {s.T.expect_int(), s.K.expect_int(), s.E.expect_int(),
          s.H.expect_int(), s.I.expect_int(), s.width.expect_int()};
}

inline at::TensorOptions contiguous_like(const Tensor& like) {
  return like.options().memory_format(at::MemoryFormat::Contiguous);
}

/// What a part's experts have of a tensor with one entry for each expert.
inline Tensor experts_of(const ExpertsPart& part, const Tensor& entries) {
  return part.begins && part.ends ? entries : entries.narrow(0, part.first_expert, part.experts);
}
inline OptionalTensor experts_of(const ExpertsPart& part, const OptionalTensor& entries) {
  return entries ? OptionalTensor(experts_of(part, *entries)) : entries;
}
/// What a part has of a tensor with one row for each sorted position.
inline Tensor positions_of(const ExpertsPart& part, const Tensor& sorted) {
  return sorted.narrow(0, part.first, part.rows);
}
/// Rows of (T, …), sorted.
inline SortedRows gathered_rows(const ExpertsPart& part, const Tensor& tokens, int64_t K) {
  return {matrix(tokens), part.assignments, K, false};
}

/// Assignments sorted by expert, and cut into parts.
struct SortedPlan {
  Tensor permutation;  // (T·K)
  std::vector<ExpertsPart> parts;
  int64_t rows;       // that have an expert
  int64_t most_rows;  // of a part

  SortedPlan(const Tensor& ids, const ExpertSizes& s);
};

}  // namespace fulgurite
