// The arguments of each operator as one struct, so that the long lists of the schemas stand in C++ once: here.
// FromSchema<f> is the function to register: it gathers the arguments and calls f(args).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/op_handle.h"

namespace fulgurite {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using AttentionResult = std::tuple<Tensor, Tensor>;
using AttentionGradients = std::tuple<Tensor, Tensor, Tensor>;

struct AttentionArgs {
  Tensor query, key, value;
  OptionalTensor bias, mask, sink, alibi_slopes, block_layout;
  int64_t block_size;
  std::optional<double> scale;
  bool causal;
  std::string_view align;
  int64_t window_left, window_right, sink_tokens, chunk_size;
  double softcap;
  std::string_view score;
  double score_scale, dropout_p;
  OptionalTensor philox;

  using Signature = AttentionResult(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t, std::optional<double>,
                                    bool, std::string_view, int64_t, int64_t, int64_t, int64_t, double, std::string_view, double, double,
                                    const OptionalTensor&);
  /// Calls the operator through the dispatcher.
  AttentionResult call() const {
    static const auto op = op_handle<Signature>("attention");
    return op.call(query, key, value, bias, mask, sink, alibi_slopes, block_layout, block_size, scale, causal, align, window_left,
                   window_right, sink_tokens, chunk_size, softcap, score, score_scale, dropout_p, philox);
  }
};

template <AttentionResult (*f)(const AttentionArgs&)>
AttentionResult attention_from_schema(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& bias,
                                      const OptionalTensor& mask, const OptionalTensor& sink, const OptionalTensor& alibi_slopes,
                                      const OptionalTensor& block_layout, int64_t block_size, std::optional<double> scale, bool causal,
                                      std::string_view align, int64_t window_left, int64_t window_right, int64_t sink_tokens,
                                      int64_t chunk_size, double softcap, std::string_view score, double score_scale, double dropout_p,
                                      const OptionalTensor& philox) {
  return f({query, key, value, bias, mask, sink, alibi_slopes, block_layout, block_size, scale, causal, align, window_left, window_right,
            sink_tokens, chunk_size, softcap, score, score_scale, dropout_p, philox});
}

struct AttentionBackwardArgs {
  OptionalTensor grad_out, grad_lse;
  Tensor query, key, value, out, lse;
  OptionalTensor mask;
  double scale;
  bool causal;
  std::string_view align;
  int64_t window_left, window_right;
  std::array<bool, 3> output_mask;  // query, key, value

  using Signature = AttentionGradients(const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const Tensor&, const Tensor&, const OptionalTensor&, double, bool, std::string_view, int64_t, int64_t,
                                       std::array<bool, 3>);
  AttentionGradients call() const {
    static const auto op = op_handle<Signature>("_attention_backward");
    return op.call(grad_out, grad_lse, query, key, value, out, lse, mask, scale, causal, align, window_left, window_right, output_mask);
  }
};

template <AttentionGradients (*f)(const AttentionBackwardArgs&)>
AttentionGradients attention_backward_from_schema(const OptionalTensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query,
                                                  const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                                                  const OptionalTensor& mask, double scale, bool causal, std::string_view align,
                                                  int64_t window_left, int64_t window_right, std::array<bool, 3> output_mask) {
  return f({grad_out, grad_lse, query, key, value, out, lse, mask, scale, causal, align, window_left, window_right, output_mask});
}

using RopeSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, bool, bool);

inline Tensor call_rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved, bool conjugate) {
  static const auto op = op_handle<RopeSignature>("rope");
  return op.call(x, cos, sin, interleaved, conjugate);
}

}  // namespace fulgurite
