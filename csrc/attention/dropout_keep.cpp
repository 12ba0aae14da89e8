#include "attention/dropout_keep.h"

#include "common/check.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {

void check_dropout_keep(const at::Tensor& philox, double dropout_p, const RowTile& t) {
  constexpr const char* op = "_attention_dropout_keep";
  FULGURITE_CHECK_TYPE(philox.scalar_type() == at::kLong, "expected philox of dtype int64, got ",
                       philox.scalar_type());
  FULGURITE_CHECK(philox.dim() == 1 && (philox.sym_size(0) == 2 || philox.sym_size(0) == 4),
                  "expected philox of shape [2] or [4], got ", philox.sym_sizes());
  FULGURITE_CHECK_VALUE(dropout_p > 0 && dropout_p < 1, "expected dropout_p in (0, 1), got ",
                        dropout_p);
  for (const auto& [name, number] : {std::pair{"b", t.b},
                                     {"h", t.h},
                                     {"heads", t.heads},
                                     {"i", t.i},
                                     {"rows", t.rows},
                                     {"j", t.j},
                                     {"keys", t.keys}})
    FULGURITE_CHECK_VALUE(number >= 0, "expected ", name, " >= 0, got ", number);
}

namespace {

at::Tensor dropout_keep_meta(const at::Tensor& philox, double dropout_p, int64_t b, int64_t h,
                             int64_t heads, int64_t i, int64_t rows, int64_t j, int64_t keys) {
  check_dropout_keep(philox, dropout_p, {b, h, heads, i, rows, j, keys});
  return at::empty({heads, rows, keys}, philox.options().dtype(at::kBool));
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  m.impl("_attention_dropout_keep", fulgurite::dropout_keep_meta);
}
