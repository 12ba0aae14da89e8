// One call of the experts on the CPU: the kernels that both passes run, part by part.
#pragma once

#include "moe/cpu/experts_parts.h"

namespace fulgurite {

/// What both passes tell the hidden layer's kernels of all parts.
HiddenParams hidden_params(const ExpertSizes& s, const ExpertsArgs& a);
/// And of one; operands are the caller's.
void set_part(HiddenParams& p, const ExpertsPart& part, const ExpertsArgs& a);

/// A matrix of operands: of `like`'s type where products take that, else of the accumulation type. Rows stand a cache line farther apart than they are wide: those of a power of two
/// would share cache sets. They end in zeros up to a whole step.
Tensor operands(const HiddenParams& p, int64_t rows, int64_t columns, const Tensor& like);
/// A part's rows of (T,H), sorted, as operands in `to`.
void gather_operands(const HiddenParams& p, const ExpertsPart& part, int64_t K, const Tensor& rows,
                     const Tensor& to);

/// The forward of a part: hidden, activated, or both.
void run_hidden(const HiddenParams& p, const ExpertsPart& part);
/// The gradients of the hidden layer, w·h, or both.
void run_grad_hidden(const HiddenParams& p, const ExpertsPart& part);

/// Sums over the experts of each token, part by part.
class TokenSums {
 public:
  /// Of `out` (T,H), or of nothing where out is a gradient that nobody asked for.
  TokenSums(const ExpertSizes& s, const SortedPlan& plan, const Tensor& out);
  /// Adds rows of operands (depth and padding) times b (depth,H) and bias (H) of their experts; with the last part, out is written.
  void add(const ExpertsPart& part, const Tensor& rows, int64_t depth, const ExpertMatrices& b,
           const ExpertRows& bias, const void* weights) const;

 private:
  const ExpertSizes& s_;
  Tensor out_, between_;  // (T,H); of the accumulation type, where there is more than one part
};

/// (T,K) in the accumulation type.
Tensor accumulation_weights(const ExpertsArgs& a);

}  // namespace fulgurite
