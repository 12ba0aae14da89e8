#include "attention/dropout_keep.h"

#include "common/check.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {

void check_dropout_keep(const DropoutKeepArgs& args) {
  constexpr const char* op = "_attention_dropout_keep";
  const auto& [philox, dropout_p, t] = args;
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

Tensor dropout_keep_meta(const DropoutKeepArgs& args) {
  check_dropout_keep(args);
  const RowTile& t = args.tile;
  return at::empty({t.heads, t.rows, t.keys}, args.philox.options().dtype(at::kBool));
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) { fulgurite::implement<fulgurite::dropout_keep_meta>(m); }
