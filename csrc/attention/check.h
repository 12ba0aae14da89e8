// Validation and shape inference of the attention family, once for Meta, CPU and CUDA.
#pragma once

#include "attention/args.h"
#include "attention/double_backward.h"

namespace fulgurite {

struct AttentionShape {
  c10::SymInt B, Hq, Hkv, N, M, D, Dv;
};

AttentionShape check_attention(const AttentionArgs& args);
AttentionShape check_attention_backward(const AttentionBackwardArgs& args);
void check_attention_double_backward(const AttentionDoubleBackwardArgs& args);
void check_rope(const RopeArgs& args);

// Parts that the operators of the family share.
void check_score_types(const char* op, const ScoreArgs& scores, const Tensor& query);
void check_score_shapes(const char* op, const ScoreArgs& scores, const Tensor& query,
                        const AttentionShape& shape);
void check_score_values(const char* op, const ScoreArgs& scores, const AttentionShape& shape);
void check_backward_types(const char* op, const Tensor& query, const Tensor& key,
                          const Tensor& value, const Tensor& out, const Tensor& lse,
                          const OptionalTensor& grad_out, const OptionalTensor& grad_lse);
void check_backward_shapes(const char* op, const c10::SymDimVector& out_sizes,
                           const c10::SymDimVector& lse_sizes, const Tensor& out, const Tensor& lse,
                           const OptionalTensor& grad_out, const OptionalTensor& grad_lse);

/// Whether query heads share key/value heads evenly; as many of both need no question that only data could answer.
inline bool is_multiple(const c10::SymInt& Hq, const c10::SymInt& Hkv) {
  return TORCH_GUARD_OR_FALSE(Hq.sym_eq(Hkv)) || (Hkv != 0 && Hq % Hkv == 0);
}

/// The factor of q·k: the given one, or 1/√D.
double attention_scale(const std::optional<double>& scale, const Tensor& query);

}  // namespace fulgurite
