// What scores.h defines, as tensors of one tile: for code made of ATen ops.
#pragma once

#include "attention/dropout_keep.h"
#include "attention/score_rule.h"

#include <c10/core/TensorOptions.h>

namespace fulgurite {

/// The part of a tensor broadcastable to (B, Hq, N, M) that a tile meets: (heads, rows, keys), 1 where it broadcasts.
Tensor part_of(const Tensor& tensor, const RowTile& tile);

class ScoreTiles {
 public:
  /// For N queries and M keys; `options` has the accumulation type.
  ScoreTiles(const ScoreArgs& scores, int64_t N, int64_t M, const at::TensorOptions& options);

  /// The rows with every key in their reach by position.
  RowTile tile(int64_t b, int64_t h, int64_t heads, int64_t i, int64_t rows) const;
  /// Pairs that are not kept: (1 or heads, rows, keys), contiguous.
  Tensor hidden(const RowTile& tile) const;
  /// score + bias − alibi_h·|i' − j|
  Tensor biased(const Tensor& score, const RowTile& tile) const;
  /// Dropout's z: 0 where a pair is dropped, else 1/(1 − p). Undefined without dropout.
  Tensor keep(const RowTile& tile) const;

 private:
  Tensor in_reach(const RowTile& tile) const;
  Tensor in_layout(const RowTile& tile) const;
  Tensor positions(int64_t begin, int64_t size) const;

  const ScoreArgs& scores_;
  const at::TensorOptions options_;
  ScoreRule rule_;
};

}  // namespace fulgurite
