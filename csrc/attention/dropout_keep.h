// _attention_dropout_keep: which pairs of a tile dropout keeps, on philox's device, for code that is made of ATen ops.
#pragma once

#include "common/arguments.h"

namespace fulgurite {

/// Query rows [i, i + rows) of heads [h, h + heads) against keys [j, j + keys), of batch entry b.
struct RowTile {
  int64_t b, h, heads, i, rows, j, keys;
  FULGURITE_MEMBERS(b, h, heads, i, rows, j, keys)
};

struct DropoutKeepArgs {
  static constexpr const char* kName = "_attention_dropout_keep";
  using Result = Tensor;  // bool (heads, rows, keys)
  Tensor philox;
  double dropout_p;
  RowTile tile;
  FULGURITE_MEMBERS(philox, dropout_p, tile)
};

void check_dropout_keep(const DropoutKeepArgs& args);

}  // namespace fulgurite
