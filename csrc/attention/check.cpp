#include "attention/check.h"

#include <cmath>

#include "common/check.h"

namespace fulgurite {
namespace {

AttentionShape check_query_key_value(const char* op, const Tensor& query, const Tensor& key, const Tensor& value) {
  check_dim(op, "query", query, 4, "[B, Hq, N, D]");
  check_dim(op, "key", key, 4, "[B, Hkv, M, D]");
  check_dim(op, "value", value, 4, "[B, Hkv, M, Dv]");
  AttentionShape s{query.sym_size(0), query.sym_size(1), key.sym_size(1), query.sym_size(2), key.sym_size(2), query.sym_size(3), value.sym_size(3)};
  FULGURITE_CHECK(key.sym_size(0) == s.B && key.sym_size(3) == s.D, "expected key of shape [", s.B, ", Hkv, M, ", s.D, "], got ", key.sym_sizes());
  FULGURITE_CHECK(value.sym_size(0) == s.B && value.sym_size(1) == s.Hkv && value.sym_size(2) == s.M, "expected value of shape [", s.B, ", ",
                  s.Hkv, ", ", s.M, ", Dv], got ", value.sym_sizes());
  FULGURITE_CHECK(s.Hkv == 0 ? s.Hq == 0 : s.Hq % s.Hkv == 0, "expected Hq to be a multiple of Hkv = ", s.Hkv, ", got ", s.Hq);
  check_place(op, "query", query, query);
  check_place(op, "key", key, query);
  check_place(op, "value", value, query);
  return s;
}

/// Up to four dimensions, each 1 or that of the scores; the batch may also be a divisor of B (index b mod its size).
void check_broadcast(const char* op, const char* name, const Tensor& tensor, const Tensor& query, const AttentionShape& s) {
  check_place(op, name, tensor, query);
  const std::array<c10::SymInt, 4> full{s.B, s.Hq, s.N, s.M};
  bool fits = tensor.dim() <= 4;
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    const c10::SymInt size = tensor.sym_size(d);
    const int64_t axis = 4 - tensor.dim() + d;
    fits = size == 1 || size == full[axis] || (axis == 0 && size > 0 && full[0] % size == 0);
  }
  FULGURITE_CHECK(fits, "expected ", name, " broadcastable to [", s.B, ", ", s.Hq, ", ", s.N, ", ", s.M, "], got ", tensor.sym_sizes());
}

void check_mask_dtype(const char* op, const OptionalTensor& mask) {
  if (mask) FULGURITE_CHECK_TYPE(mask->scalar_type() == at::kBool, "expected mask of dtype bool, got ", mask->scalar_type());
}

void check_align(const char* op, std::string_view align) {
  FULGURITE_CHECK_VALUE(align == "bottom_right" || align == "top_left", "expected align 'bottom_right' or 'top_left', got '", align, "'");
}

void check_types(const char* op, const AttentionArgs& a) {
  check_float(op, "query", a.query);
  check_same_dtype(op, "key", a.key, "query", a.query);
  check_same_dtype(op, "value", a.value, "query", a.query);
  check_mask_dtype(op, a.mask);
}

void check_values(const char* op, const AttentionArgs& a, const AttentionShape& s) {
  check_align(op, a.align);
  FULGURITE_CHECK_VALUE(a.score == "softmax" || a.score == "relu2" || a.score == "laplace", "expected score 'softmax', 'relu2' or 'laplace', got '",
                        a.score, "'");
  FULGURITE_CHECK_VALUE(a.scale || s.D != 0, "expected scale with D = 0, got none");
  FULGURITE_CHECK_VALUE(a.dropout_p >= 0 && a.dropout_p < 1, "expected dropout_p in [0, 1), got ", a.dropout_p);
  FULGURITE_CHECK_VALUE(a.dropout_p == 0 || a.philox, "expected philox with dropout_p > 0, got none");
  FULGURITE_CHECK_VALUE(a.softcap >= 0, "expected softcap >= 0, got ", a.softcap);
  FULGURITE_CHECK_VALUE(a.sink_tokens >= 0, "expected sink_tokens >= 0, got ", a.sink_tokens);
  FULGURITE_CHECK_VALUE(a.chunk_size >= 0, "expected chunk_size >= 0, got ", a.chunk_size);
  FULGURITE_CHECK_VALUE(a.block_layout ? a.block_size > 0 : a.block_size == 0, "expected block_size > 0 with block_layout and 0 without, got ",
                        a.block_size);
  FULGURITE_CHECK_VALUE(a.score != "softmax" || a.score_scale == 1.0, "expected score_scale 1 with score 'softmax', got ", a.score_scale);
  FULGURITE_CHECK_VALUE(a.score == "softmax" || (!a.sink && a.dropout_p == 0), "expected no sink and no dropout with score '", a.score, "'");
}

void check_served(const char* op, const AttentionArgs& a) {
  FULGURITE_CHECK_SERVED(!a.bias, "bias is not supported yet");
  FULGURITE_CHECK_SERVED(!a.sink, "sink is not supported yet");
  FULGURITE_CHECK_SERVED(!a.alibi_slopes, "alibi_slopes is not supported yet");
  FULGURITE_CHECK_SERVED(!a.block_layout, "block_layout is not supported yet");
  FULGURITE_CHECK_SERVED(a.sink_tokens == 0, "sink_tokens is not supported yet");
  FULGURITE_CHECK_SERVED(a.chunk_size == 0, "chunk_size is not supported yet");
  FULGURITE_CHECK_SERVED(a.softcap == 0, "softcap is not supported yet");
  FULGURITE_CHECK_SERVED(a.score == "softmax", "score '", a.score, "' is not supported yet");
  FULGURITE_CHECK_SERVED(a.dropout_p == 0, "dropout_p is not supported yet");
}

}  // namespace

AttentionShape check_attention(const AttentionArgs& args) {
  constexpr const char* op = "attention";
  check_types(op, args);
  const AttentionShape s = check_query_key_value(op, args.query, args.key, args.value);
  if (args.mask) check_broadcast(op, "mask", *args.mask, args.query, s);
  check_values(op, args, s);
  check_served(op, args);
  return s;
}

AttentionShape check_attention_backward(const AttentionBackwardArgs& a) {
  constexpr const char* op = "_attention_backward";
  check_float(op, "query", a.query);
  for (const auto& [name, tensor] : {std::pair{"key", &a.key}, {"value", &a.value}, {"out", &a.out}})
    check_same_dtype(op, name, *tensor, "query", a.query);
  if (a.grad_out) check_same_dtype(op, "grad_out", *a.grad_out, "query", a.query);
  if (a.grad_lse) check_same_dtype(op, "grad_lse", *a.grad_lse, "lse", a.lse);
  FULGURITE_CHECK_TYPE(a.lse.scalar_type() == accumulate_type(a.query.scalar_type()), "expected lse of dtype ",
                       accumulate_type(a.query.scalar_type()), ", got ", a.lse.scalar_type());
  check_mask_dtype(op, a.mask);
  const AttentionShape s = check_query_key_value(op, a.query, a.key, a.value);
  const c10::SymDimVector out{s.B, s.Hq, s.N, s.Dv}, lse{s.B, s.Hq, s.N};
  FULGURITE_CHECK(a.out.sym_sizes() == c10::SymIntArrayRef(out), "expected out of shape ", out, ", got ", a.out.sym_sizes());
  FULGURITE_CHECK(a.lse.sym_sizes() == c10::SymIntArrayRef(lse), "expected lse of shape ", lse, ", got ", a.lse.sym_sizes());
  if (a.grad_out) FULGURITE_CHECK(a.grad_out->sym_sizes() == c10::SymIntArrayRef(out), "expected grad_out of shape ", out, ", got ", a.grad_out->sym_sizes());
  if (a.grad_lse) FULGURITE_CHECK(a.grad_lse->sym_sizes() == c10::SymIntArrayRef(lse), "expected grad_lse of shape ", lse, ", got ", a.grad_lse->sym_sizes());
  if (a.mask) check_broadcast(op, "mask", *a.mask, a.query, s);
  check_align(op, a.align);
  return s;
}

double attention_scale(const AttentionArgs& args) {
  return args.scale ? *args.scale : 1.0 / std::sqrt(static_cast<double>(args.query.size(3)));
}

void check_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  constexpr const char* op = "rope";
  check_float(op, "x", x);
  FULGURITE_CHECK_TYPE(cos.scalar_type() == x.scalar_type() || cos.scalar_type() == at::kFloat, "expected cos of x's dtype ", x.scalar_type(),
                       " or float32, got ", cos.scalar_type());
  check_same_dtype(op, "sin", sin, "cos", cos);
  FULGURITE_CHECK(x.dim() >= 1 && x.dim() <= 16, "expected x of shape [..., N, D] with at most 16 dimensions, got ", x.sym_sizes());
  FULGURITE_CHECK(cos.dim() >= 1, "expected cos of shape [..., N, R/2], got ", cos.sym_sizes());
  FULGURITE_CHECK(sin.sym_sizes() == cos.sym_sizes(), "expected sin of cos's shape ", cos.sym_sizes(), ", got ", sin.sym_sizes());
  FULGURITE_CHECK(cos.sym_size(-1) * 2 <= x.sym_size(-1), "expected cos with at most D/2 = ", x.sym_size(-1) / 2, " columns, got ", cos.sym_sizes());
  bool fits = cos.dim() <= x.dim();
  for (int64_t d = 2; fits && d <= cos.dim(); ++d) fits = cos.sym_size(-d) == 1 || cos.sym_size(-d) == x.sym_size(-d);
  FULGURITE_CHECK(fits, "expected cos broadcastable to x's rows ", x.sym_sizes(), ", got ", cos.sym_sizes());
  check_place(op, "x", x, x);
  check_place(op, "cos", cos, x);
  check_place(op, "sin", sin, x);
}

}  // namespace fulgurite
