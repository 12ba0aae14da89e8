// _attention_dropout_keep: which pairs of a tile dropout keeps, on philox's device, for code that is made of ATen ops.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/op_handle.h"

namespace fulgurite {

/// Query rows [i, i + rows) of heads [h, h + heads) against keys [j, j + keys), of batch entry b.
struct RowTile {
  int64_t b, h, heads, i, rows, j, keys;
};

using DropoutKeepSignature = at::Tensor(const at::Tensor&, double, int64_t, int64_t, int64_t,
                                        int64_t, int64_t, int64_t, int64_t);

void check_dropout_keep(const at::Tensor& philox, double dropout_p, const RowTile& tile);

/// bool (heads, rows, keys)
inline at::Tensor call_dropout_keep(const at::Tensor& philox, double dropout_p, const RowTile& t) {
  static const auto op = op_handle<DropoutKeepSignature>("_attention_dropout_keep");
  return op.call(philox, dropout_p, t.b, t.h, t.heads, t.i, t.rows, t.j, t.keys);
}

}  // namespace fulgurite
