// Attention over a cache of keys and values: checks and Meta. It has no gradient.
#include "attention/decode.h"

#include "common/check.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

void check_types(const char* op, const DecodeArgs& a) {
  check_float(op, "query", a.query);
  check_same_dtype(op, "key_cache", a.key_cache, "query", a.query);
  check_same_dtype(op, "value_cache", a.value_cache, "query", a.query);
  const at::ScalarType lens = a.cache_lens.scalar_type();
  FULGURITE_CHECK_TYPE(lens == at::kInt || lens == at::kLong,
                       "expected cache_lens of dtype int32 or int64, got ", lens);
  if (a.page_table)
    FULGURITE_CHECK_TYPE(a.page_table->scalar_type() == at::kInt,
                         "expected page_table of dtype int32, got ", a.page_table->scalar_type());
  check_score_types(op, a.scores, a.query);
}

void check_caches(const char* op, const DecodeArgs& a, const AttentionShape& s) {
  const Tensor &key = a.key_cache, &value = a.value_cache;
  if (a.page_table) {
    FULGURITE_CHECK(key.sym_size(3) == s.D, "expected key_cache of shape [P, Hkv, page, ", s.D,
                    "], got ", key.sym_sizes());
    FULGURITE_CHECK(a.page_table->dim() == 2 && same_size(a.page_table->sym_size(0), s.B),
                    "expected page_table of shape [", s.B, ", pages], got ",
                    a.page_table->sym_sizes());
    check_place(op, "page_table", *a.page_table, a.query);
  } else {
    FULGURITE_CHECK(same_size(key.sym_size(0), s.B) && key.sym_size(3) == s.D,
                    "expected key_cache of shape [", s.B, ", Hkv, Mmax, ", s.D, "], got ",
                    key.sym_sizes());
  }
  FULGURITE_CHECK(same_sizes(value.sym_sizes().slice(0, 3), key.sym_sizes().slice(0, 3)),
                  "expected value_cache of shape [", key.sym_size(0), ", ", key.sym_size(1), ", ",
                  key.sym_size(2), ", Dv], got ", value.sym_sizes());
}

}  // namespace

AttentionShape check_decode(const DecodeArgs& a) {
  constexpr const char* op = "attention_decode";
  check_types(op, a);
  const char* const cache_shape = a.page_table ? "[P, Hkv, page, D]" : "[B, Hkv, Mmax, D]";
  check_dim(op, "query", a.query, 4, "[B, Hq, N, D]");
  check_dim(op, "key_cache", a.key_cache, 4, cache_shape);
  check_dim(op, "value_cache", a.value_cache, 4, cache_shape);
  AttentionShape s{a.query.sym_size(0),      a.query.sym_size(1),     a.key_cache.sym_size(1),
                   a.query.sym_size(2),      a.key_cache.sym_size(2), a.query.sym_size(3),
                   a.value_cache.sym_size(3)};
  check_caches(op, a, s);
  if (a.page_table) s.M = s.M * a.page_table->sym_size(1);
  FULGURITE_CHECK(is_multiple(s.Hq, s.Hkv), "expected Hq to be a multiple of Hkv = ", s.Hkv,
                  ", got ", s.Hq);
  FULGURITE_CHECK(a.cache_lens.dim() == 1 && same_size(a.cache_lens.sym_size(0), s.B),
                  "expected cache_lens of shape [", s.B, "], got ", a.cache_lens.sym_sizes());
  check_place(op, "query", a.query, a.query);
  check_place(op, "key_cache", a.key_cache, a.query);
  check_place(op, "value_cache", a.value_cache, a.query);
  check_place(op, "cache_lens", a.cache_lens, a.query);
  check_score_shapes(op, a.scores, a.query, s);
  check_score_values(op, a.scores, s);
  return s;
}

namespace {

AttentionResult decode_meta(const DecodeArgs& args) {
  const AttentionShape s = check_decode(args);
  const auto options = args.query.options();
  return {
      at::empty_symint({s.B, s.Hq, s.N, s.Dv}, options),
      at::empty_symint({s.B, s.Hq, s.N}, options.dtype(accumulate_type(args.query.scalar_type())))};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) { fulgurite::implement<fulgurite::decode_meta>(m); }

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  m.impl("attention_decode", torch::autograd::autogradNotImplementedFallback());
}
