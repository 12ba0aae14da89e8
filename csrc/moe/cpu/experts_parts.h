// A call of the experts goes through them in parts. Operands then need the memory of one part, and most of them are still in
// the caches when the next kernel reads them.
#pragma once

#include <vector>

#include "common/check.h"
#include "moe/check.h"
#include "moe/cpu/sorted.h"

namespace fulgurite {

struct ExpertSizes {
  int64_t T, K, E, H, I, width;

  explicit ExpertSizes(const ExpertsShape& s)
      : T(s.T.expect_int()),
        K(s.K.expect_int()),
        E(s.E.expect_int()),
        H(s.H.expect_int()),
        I(s.I.expect_int()),
        width(s.width.expect_int()) {}
  /// Nothing to compute: every result and every gradient is 0.
  bool nothing() const { return T == 0 || K == 0 || E == 0 || H == 0; }
};

inline at::TensorOptions contiguous_like(const Tensor& like) {
  return like.options().memory_format(at::MemoryFormat::Contiguous);
}

/// Neighbouring experts and their assignments: a call of its own, but that a token's sum goes on from part to part.
struct ExpertsPart {
  int64_t first_expert, experts;
  int64_t first, rows;           // sorted positions
  const int32_t* assignments;    // (rows)
  std::vector<int64_t> offsets;  // (experts + 1), from 0
  std::vector<Segment> segments;
  bool begins, ends;  // the first part, the last one

  /// What these experts have of a tensor with one entry for each expert.
  Tensor of(const Tensor& entries) const {
    return begins && ends ? entries : entries.narrow(0, first_expert, experts);
  }
  OptionalTensor of(const OptionalTensor& entries) const {
    return entries ? OptionalTensor(of(*entries)) : entries;
  }
  /// What this part has of a tensor with one row for each sorted position.
  Tensor positions(const Tensor& sorted) const { return sorted.narrow(0, first, rows); }
  /// Rows of (T, …), sorted.
  SortedRows gathered(const Tensor& tokens, int64_t K) const {
    return {matrix(tokens), assignments, K, false};
  }
};

/// Assignments sorted by expert, and cut into parts.
struct SortedPlan {
  Tensor permutation;  // (T·K)
  std::vector<ExpertsPart> parts;
  int64_t rows;       // that have an expert
  int64_t most_rows;  // of a part

  SortedPlan(const Tensor& ids, const ExpertSizes& s);
};

}  // namespace fulgurite
