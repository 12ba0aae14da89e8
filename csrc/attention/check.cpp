#include "attention/check.h"

#include <cmath>

#include "attention/rules/choices.h"
#include "common/check_choice.h"

namespace fulgurite {
namespace {

const RegisteredChoice attention_choices[] = {
    {"attention.score", kScoreKinds},
    {"attention.align", kAligns},
    {"attention_varlen.align", kAligns},
};

AttentionShape check_query_key_value(const char* op, const Tensor& query, const Tensor& key,
                                     const Tensor& value) {
  check_dim(op, "query", query, 4, "[B, Hq, N, D]");
  check_dim(op, "key", key, 4, "[B, Hkv, M, D]");
  check_dim(op, "value", value, 4, "[B, Hkv, M, Dv]");
  AttentionShape s{query.sym_size(0), query.sym_size(1), key.sym_size(1),  query.sym_size(2),
                   key.sym_size(2),   query.sym_size(3), value.sym_size(3)};
  FULGURITE_CHECK(same_size(key.sym_size(0), s.B) && same_size(key.sym_size(3), s.D),
                  "expected key of shape [", s.B, ", Hkv, M, ", s.D, "], got ", key.sym_sizes());
  FULGURITE_CHECK(same_sizes(value.sym_sizes().slice(0, 3), c10::SymDimVector{s.B, s.Hkv, s.M}),
                  "expected value of shape [", s.B, ", ", s.Hkv, ", ", s.M, ", Dv], got ",
                  value.sym_sizes());
  FULGURITE_CHECK(is_multiple(s.Hq, s.Hkv), "expected Hq to be a multiple of Hkv = ", s.Hkv,
                  ", got ", s.Hq);
  check_place(op, "query", query, query);
  check_place(op, "key", key, query);
  check_place(op, "value", value, query);
  return s;
}

/// A batch of masks may also be a divisor of B.
bool fits_batch(const c10::SymInt& size, const c10::SymInt& B) {
  const c10::SymBool broadcast = size.sym_eq(B).sym_or(size.sym_eq(1));
  if (TORCH_GUARD_OR_FALSE(broadcast)) return true;
  if (TORCH_GUARD_OR_FALSE(size.sym_eq(0))) return false;
  const bool may_be_zero = TORCH_GUARD_OR_TRUE(size.sym_eq(0));  // a size that only data decides
  const c10::SymBool fits = may_be_zero ? broadcast : broadcast.sym_or((B % size).sym_eq(0));
  return holds(fits);
}

/// Up to four dimensions, each 1 or that of the scores; the batch may also be a divisor of B (index b mod its size).
void check_broadcast(const char* op, const char* name, const Tensor& tensor, const Tensor& query,
                     const AttentionShape& s) {
  check_place(op, name, tensor, query);
  const std::array<c10::SymInt, 4> full{s.B, s.Hq, s.N, s.M};
  bool fits = tensor.dim() <= 4;
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    const c10::SymInt size = tensor.sym_size(d);
    const int64_t axis = 4 - tensor.dim() + d;
    fits = axis == 0 ? fits_batch(size, full[0]) : broadcasts(size, full[axis]);
  }
  FULGURITE_CHECK(fits, "expected ", name, " broadcastable to [", s.B, ", ", s.Hq, ", ", s.N, ", ",
                  s.M, "], got ", tensor.sym_sizes());
}

/// query's dtype or float32.
void check_dtype_or_float32(const char* op, const char* name, const OptionalTensor& tensor,
                            const Tensor& query) {
  if (!tensor) return;
  FULGURITE_CHECK_TYPE(
      tensor->scalar_type() == query.scalar_type() || tensor->scalar_type() == at::kFloat,
      "expected ", name, " of query's dtype ", query.scalar_type(), " or float32, got ",
      tensor->scalar_type());
}

}  // namespace

void check_score_types(const char* op, const ScoreArgs& s, const Tensor& query) {
  check_dtype_or_float32(op, "bias", s.bias, query);
  if (s.mask)
    FULGURITE_CHECK_TYPE(s.mask->scalar_type() == at::kBool, "expected mask of dtype bool, got ",
                         s.mask->scalar_type());
  check_dtype_or_float32(op, "sink", s.sink, query);
  if (s.alibi_slopes) {
    const at::ScalarType wanted = accumulate_type(query.scalar_type());
    FULGURITE_CHECK_TYPE(s.alibi_slopes->scalar_type() == wanted, "expected alibi_slopes of dtype ",
                         wanted, ", got ", s.alibi_slopes->scalar_type());
  }
  if (s.block_layout) {
    const at::ScalarType layout = s.block_layout->scalar_type();
    FULGURITE_CHECK_TYPE(layout == at::kBool || layout == at::kByte,
                         "expected block_layout of dtype bool or uint8, got ", layout);
  }
  if (s.philox)
    FULGURITE_CHECK_TYPE(s.philox->scalar_type() == at::kLong,
                         "expected philox of dtype int64, got ", s.philox->scalar_type());
}

void check_score_shapes(const char* op, const ScoreArgs& a, const Tensor& query,
                        const AttentionShape& s) {
  if (a.bias) check_broadcast(op, "bias", *a.bias, query, s);
  if (a.mask) check_broadcast(op, "mask", *a.mask, query, s);
  if (a.sink) {
    check_place(op, "sink", *a.sink, query);
    FULGURITE_CHECK(a.sink->dim() == 1 && same_size(a.sink->sym_size(0), s.Hq),
                    "expected sink of shape [", s.Hq, "], got ", a.sink->sym_sizes());
  }
  if (a.alibi_slopes) {
    check_place(op, "alibi_slopes", *a.alibi_slopes, query);
    const bool fits =
        (a.alibi_slopes->dim() == 1 ||
         (a.alibi_slopes->dim() == 2 && same_size(a.alibi_slopes->sym_size(0), s.B))) &&
        same_size(a.alibi_slopes->sym_size(-1), s.Hq);
    FULGURITE_CHECK(fits, "expected alibi_slopes of shape [", s.Hq, "] or [", s.B, ", ", s.Hq,
                    "], got ", a.alibi_slopes->sym_sizes());
  }
  if (a.philox) {
    check_place(op, "philox", *a.philox, query);
    FULGURITE_CHECK(
        a.philox->dim() == 1 && (a.philox->sym_size(0) == 2 || a.philox->sym_size(0) == 4),
        "expected philox of shape [2] or [4], got ", a.philox->sym_sizes());
  }
}

namespace {

void check_block_layout(const char* op, const ScoreArgs& a, const Tensor& query,
                        const AttentionShape& s) {
  FULGURITE_CHECK_VALUE(a.block_layout ? a.block_size > 0 : a.block_size == 0,
                        "expected block_size > 0 with block_layout and 0 without, got ",
                        a.block_size);
  if (!a.block_layout) return;
  check_place(op, "block_layout", *a.block_layout, query);
  const c10::SymInt rows = (s.N + a.block_size - 1) / a.block_size,
                    columns = (s.M + a.block_size - 1) / a.block_size;
  const bool fits = a.block_layout->dim() == 3 &&
                    (a.block_layout->sym_size(0) == 1 || a.block_layout->sym_size(0) == s.Hq) &&
                    same_size(a.block_layout->sym_size(1), rows) &&
                    same_size(a.block_layout->sym_size(2), columns);
  FULGURITE_CHECK(fits, "expected block_layout of shape [1 or ", s.Hq, ", ", rows, ", ", columns,
                  "], got ", a.block_layout->sym_sizes());
}

}  // namespace

void check_score_values(const char* op, const ScoreArgs& a, const AttentionShape& s) {
  check_choice(op, "align", kAligns, a.align);
  const bool softmax = check_choice(op, "score", kScoreKinds, a.score) == ScoreKind::kSoftmax;
  FULGURITE_CHECK_VALUE(a.scale || s.D != 0, "expected scale with D = 0, got none");
  if (a.scale) check_finite(op, "scale", *a.scale);
  check_finite(op, "softcap", a.softcap);
  check_finite(op, "score_scale", a.score_scale);
  FULGURITE_CHECK_VALUE(a.dropout_p >= 0 && a.dropout_p < 1, "expected dropout_p in [0, 1), got ",
                        a.dropout_p);
  FULGURITE_CHECK_VALUE(a.dropout_p == 0 || a.philox,
                        "expected philox with dropout_p > 0, got none");
  FULGURITE_CHECK_VALUE(a.softcap >= 0, "expected softcap >= 0, got ", a.softcap);
  FULGURITE_CHECK_VALUE(a.sink_tokens >= 0, "expected sink_tokens >= 0, got ", a.sink_tokens);
  FULGURITE_CHECK_VALUE(a.chunk_size >= 0, "expected chunk_size >= 0, got ", a.chunk_size);
  FULGURITE_CHECK_VALUE(!softmax || a.score_scale == 1.0,
                        "expected score_scale 1 with score 'softmax', got ", a.score_scale);
  FULGURITE_CHECK_VALUE(softmax || (!a.sink && a.dropout_p == 0),
                        "expected neither sink nor dropout with score '", a.score, "'");
}

AttentionShape check_attention(const AttentionArgs& a) {
  constexpr const char* op = "attention";
  check_float(op, "query", a.query);
  check_same_dtype(op, "key", a.key, "query", a.query);
  check_same_dtype(op, "value", a.value, "query", a.query);
  check_score_types(op, a.scores, a.query);
  const AttentionShape s = check_query_key_value(op, a.query, a.key, a.value);
  check_score_shapes(op, a.scores, a.query, s);
  check_score_values(op, a.scores, s);
  check_block_layout(op, a.scores, a.query, s);
  return s;
}

void check_backward_types(const char* op, const Tensor& query, const Tensor& key,
                          const Tensor& value, const Tensor& out, const Tensor& lse,
                          const OptionalTensor& grad_out, const OptionalTensor& grad_lse) {
  check_float(op, "query", query);
  for (const auto& [name, tensor] : {std::pair{"key", &key}, {"value", &value}, {"out", &out}})
    check_same_dtype(op, name, *tensor, "query", query);
  if (grad_out) check_same_dtype(op, "grad_out", *grad_out, "query", query);
  if (grad_lse) check_same_dtype(op, "grad_lse", *grad_lse, "lse", lse);
  FULGURITE_CHECK_TYPE(lse.scalar_type() == accumulate_type(query.scalar_type()),
                       "expected lse of dtype ", accumulate_type(query.scalar_type()), ", got ",
                       lse.scalar_type());
}

void check_backward_shapes(const char* op, const c10::SymDimVector& out_sizes,
                           const c10::SymDimVector& lse_sizes, const Tensor& out, const Tensor& lse,
                           const OptionalTensor& grad_out, const OptionalTensor& grad_lse) {
  check_sizes(op, "out", out, out_sizes);
  check_sizes(op, "lse", lse, lse_sizes);
  if (grad_out) check_sizes(op, "grad_out", *grad_out, out_sizes);
  if (grad_lse) check_sizes(op, "grad_lse", *grad_lse, lse_sizes);
}

AttentionShape check_attention_backward(const AttentionBackwardArgs& a) {
  constexpr const char* op = "_attention_backward";
  check_backward_types(op, a.query, a.key, a.value, a.out, a.lse, a.grad_out, a.grad_lse);
  check_score_types(op, a.scores, a.query);
  const AttentionShape s = check_query_key_value(op, a.query, a.key, a.value);
  check_backward_shapes(op, {s.B, s.Hq, s.N, s.Dv}, {s.B, s.Hq, s.N}, a.out, a.lse, a.grad_out,
                        a.grad_lse);
  check_score_shapes(op, a.scores, a.query, s);
  check_score_values(op, a.scores, s);
  check_block_layout(op, a.scores, a.query, s);
  FULGURITE_CHECK_VALUE(a.scores.bias || !a.output_mask[kBias],
                        "expected bias, whose gradient is asked for, got none");
  FULGURITE_CHECK_VALUE(a.scores.sink || !a.output_mask[kSink],
                        "expected sink, whose gradient is asked for, got none");
  return s;
}

void check_attention_double_backward(const AttentionDoubleBackwardArgs& a) {
  constexpr const char* op = "_attention_double_backward";
  constexpr const char* names[] = {"query", "key", "value", "bias", "sink"};
  const auto for_each_grad = [&](const auto& check) {
    for (int i = 0; i < kAttentionInputs; ++i)
      if (const OptionalTensor like = a.input(kOfQuery + i); like && a.grads[i])
        check(std::string("gg_") + names[i], *a.grads[i], names[i], *like);
  };
  check_float(op, "query", a.query);
  check_same_dtype(op, "key", a.key, "query", a.query);
  check_same_dtype(op, "value", a.value, "query", a.query);
  check_score_types(op, a.scores, a.query);
  if (a.grad_out) check_same_dtype(op, "grad_out", *a.grad_out, "query", a.query);
  const at::ScalarType wide = accumulate_type(a.query.scalar_type());
  FULGURITE_CHECK_TYPE(!a.grad_lse || a.grad_lse->scalar_type() == wide,
                       "expected grad_lse of dtype ", wide, ", got ", a.grad_lse->scalar_type());
  for_each_grad([](const std::string& name, const Tensor& grad, const char* as,
                   const Tensor& like) { check_same_dtype(op, name.c_str(), grad, as, like); });
  const AttentionShape s = check_query_key_value(op, a.query, a.key, a.value);
  const auto check_grad = [&](const char* name, const Tensor& grad, c10::SymIntArrayRef sizes) {
    check_sizes(op, name, grad, sizes);
    check_place(op, name, grad, a.query);
  };
  if (a.grad_out) check_grad("grad_out", *a.grad_out, c10::SymDimVector{s.B, s.Hq, s.N, s.Dv});
  if (a.grad_lse) check_grad("grad_lse", *a.grad_lse, c10::SymDimVector{s.B, s.Hq, s.N});
  for_each_grad([&](const std::string& name, const Tensor& grad, const char*, const Tensor& like) {
    check_grad(name.c_str(), grad, like.sym_sizes());
  });
  check_score_shapes(op, a.scores, a.query, s);
  check_score_values(op, a.scores, s);
  check_block_layout(op, a.scores, a.query, s);
  for (int i = 0; i < kAttentionInputs; ++i)
    FULGURITE_CHECK_VALUE(!a.grads[i] || a.input(kOfQuery + i), "expected ", names[i], " with gg_",
                          names[i], ", got none");
  for (int i = 0; i < kDoubleBackwardInputs; ++i)
    FULGURITE_CHECK_VALUE(!a.output_mask[i] || a.input(i), "expected ",
                          i == kOfGradOut   ? "grad_out"
                          : i == kOfGradLse ? "grad_lse"
                                            : names[i - kOfQuery],
                          ", whose gradient is asked for, got none");
}

double attention_scale(const std::optional<double>& scale, const Tensor& query) {
  return scale ? *scale : 1.0 / std::sqrt(static_cast<double>(query.size(-1)));
}

void check_rope(const RopeArgs& a) {
  constexpr const char* op = "rope";
  const Tensor &x = a.x, &cos = a.cos, &sin = a.sin;
  check_float(op, "x", x);
  FULGURITE_CHECK_TYPE(cos.scalar_type() == x.scalar_type() || cos.scalar_type() == at::kFloat,
                       "expected cos of x's dtype ", x.scalar_type(), " or float32, got ",
                       cos.scalar_type());
  check_same_dtype(op, "sin", sin, "cos", cos);
  FULGURITE_CHECK(x.dim() >= 1 && x.dim() <= 16,
                  "expected x of shape [..., N, D] with at most 16 dimensions, got ",
                  x.sym_sizes());
  FULGURITE_CHECK(cos.dim() >= 1, "expected cos of shape [..., N, R/2], got ", cos.sym_sizes());
  FULGURITE_CHECK(same_sizes(sin.sym_sizes(), cos.sym_sizes()), "expected sin of cos's shape ",
                  cos.sym_sizes(), ", got ", sin.sym_sizes());
  FULGURITE_CHECK(cos.sym_size(-1) * 2 <= x.sym_size(-1),
                  "expected cos with at most D/2 = ", x.sym_size(-1) / 2, " columns, got ",
                  cos.sym_sizes());
  bool fits = cos.dim() <= x.dim();
  for (int64_t d = 2; fits && d <= cos.dim(); ++d)
    fits = broadcasts(cos.sym_size(-d), x.sym_size(-d));
  FULGURITE_CHECK(fits, "expected cos broadcastable to x's rows ", x.sym_sizes(), ", got ",
                  cos.sym_sizes());
  check_place(op, "x", x, x);
  check_place(op, "cos", cos, x);
  check_place(op, "sin", sin, x);
}

}  // namespace fulgurite
