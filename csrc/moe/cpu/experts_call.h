// One call of the experts on the CPU: sizes, assignments sorted by expert, and the kernels that both passes run.
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
  int64_t products() const { return T * K * H * I; }
};

inline at::TensorOptions contiguous_like(const Tensor& like) {
  return like.options().memory_format(at::MemoryFormat::Contiguous);
}

/// Assignments sorted by expert, and those of each expert cut into segments.
struct SortedPlan {
  Tensor permutation;            // (T·K)
  std::vector<int64_t> offsets;  // (E+1)
  std::vector<Segment> segments;

  SortedPlan(const Tensor& ids, const ExpertSizes& s);
  /// Assignments that have an expert.
  int64_t rows() const { return offsets.back(); }
  const int32_t* assignments() const { return permutation.const_data_ptr<int32_t>(); }
  /// Rows of (T, …), sorted.
  SortedRows gathered(const Tensor& rows, const ExpertSizes& s) const {
    return {matrix(rows), assignments(), s.K, false};
  }
};

/// What both passes tell the hidden layer's kernels; x is still to come.
HiddenParams hidden_params(const ExpertSizes& s, const SortedPlan& plan, const ExpertsArgs& a);

/// A matrix of operands: of `like`'s type where products take that, else of the accumulation type.
Tensor operands(const HiddenParams& p, int64_t rows, int64_t columns, const Tensor& like);
/// Rows of (T,H), sorted, as operands.
Tensor gather_operands(const HiddenParams& p, const SortedPlan& plan, const Tensor& rows,
                       const ExpertSizes& s);

/// The forward of every segment: hidden, activated, or both.
void run_hidden(const HiddenParams& p, const ExpertSizes& s, const SortedPlan& plan);
/// The gradients of the hidden layer, w·h, or both.
void run_grad_hidden(const HiddenParams& p, const ExpertSizes& s, const SortedPlan& plan);

/// out (T,H) from rows of operands (T·K, depth and padding), b (depth,H) and bias (H) for each expert.
void run_reduce(const ExpertSizes& s, const SortedPlan& plan, const Tensor& rows, int64_t depth,
                const ExpertMatrices& b, const ExpertRows& bias, const void* weights,
                const Tensor& out);

/// (T,K) in the accumulation type.
Tensor accumulation_weights(const ExpertsArgs& a);

}  // namespace fulgurite
