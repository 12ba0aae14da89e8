#include "attention/score_tiles.h"

#include <ATen/TensorOperators.h>
#include "common/check_choice.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>

namespace fulgurite {

Tensor part_of(const Tensor& tensor, const RowTile& t) {
  Tensor part = tensor;
  while (part.dim() < 4) part = part.unsqueeze(0);
  part = part.select(0, t.b % part.size(0));
  if (part.size(0) != 1) part = part.narrow(0, t.h, t.heads);
  if (part.size(1) != 1) part = part.narrow(1, t.i, t.rows);
  if (part.size(2) != 1) part = part.narrow(2, t.j, t.keys);
  return part;
}

ScoreTiles::ScoreTiles(const ScoreArgs& scores, int64_t N, int64_t M,
                       const at::TensorOptions& options)
    : scores_(scores), options_(options), rule_(score_rule(scores, N + M)) {
  rule_.M = M;
  rule_.shift = choice_of(kAligns, scores.align) == Align::kBottomRight ? M - N : 0;
}

RowTile ScoreTiles::tile(int64_t b, int64_t h, int64_t heads, int64_t i, int64_t rows) const {
  const KeyRange keys = rule_.reach(i, i + rows).hull(0, rule_.M);
  return {b, h, heads, i, rows, keys.begin, std::max<int64_t>(0, keys.end - keys.begin)};
}

Tensor ScoreTiles::hidden(const RowTile& t) const {
  Tensor kept = in_reach(t).unsqueeze(0);
  if (scores_.mask) kept = kept & part_of(*scores_.mask, t);
  if (scores_.bias)
    kept = kept & part_of(*scores_.bias, t).ne(-std::numeric_limits<double>::infinity());
  if (scores_.block_layout) kept = kept & in_layout(t);
  return kept.logical_not_();
}

/// (rows, keys)
Tensor ScoreTiles::in_reach(const RowTile& t) const {
  const Tensor ends = at::empty({4, t.rows, 1}, at::kLong);
  auto* const end = ends.mutable_data_ptr<int64_t>();
  for (int64_t r = 0; r < t.rows; ++r) {
    const KeyReach reach = rule_.reach(t.i + r);
    end[r] = reach.window.begin;
    end[t.rows + r] = reach.window.end;
    end[2 * t.rows + r] = reach.sinks.begin;
    end[3 * t.rows + r] = reach.sinks.end;
  }
  const Tensor e = ends.to(options_.device(), at::kLong, /*non_blocking=*/true),
               j = positions(t.j, t.keys);
  return (j.ge(e[0]) & j.lt(e[1])) | (j.ge(e[2]) & j.lt(e[3]));
}

/// (1 or heads, rows, keys)
Tensor ScoreTiles::in_layout(const RowTile& t) const {
  const auto blocks = [&](int64_t begin, int64_t size) {
    return positions(begin, size).div(rule_.block_size, "floor");
  };
  Tensor layout = *scores_.block_layout;
  if (layout.size(0) != 1) layout = layout.narrow(0, t.h, t.heads);
  layout = layout.index_select(1, blocks(t.i, t.rows)).index_select(2, blocks(t.j, t.keys));
  return layout.to(at::kBool);
}

Tensor ScoreTiles::biased(const Tensor& score, const RowTile& t) const {
  Tensor sum = score;
  if (scores_.bias) sum = sum + part_of(*scores_.bias, t);
  if (!scores_.alibi_slopes) return sum;
  Tensor slopes = *scores_.alibi_slopes;
  if (slopes.dim() == 2) slopes = slopes.select(0, t.b);
  const Tensor i = positions(t.i + rule_.shift, t.rows).unsqueeze(-1);
  const Tensor distance = (i - positions(t.j, t.keys)).abs_();
  return sum - slopes.narrow(0, t.h, t.heads).unsqueeze(-1).unsqueeze(-1) * distance;
}

Tensor ScoreTiles::keep(const RowTile& t) const {
  const double p = scores_.dropout_p;
  if (p == 0) return Tensor();
  const Tensor kept = call(DropoutKeepArgs{*scores_.philox, p, t});
  return kept.to(c10::typeMetaToScalarType(options_.dtype())).mul_(1 / (1 - p));
}

Tensor ScoreTiles::positions(int64_t begin, int64_t size) const {
  return at::arange(begin, begin + size, options_.dtype(at::kLong));
}

}  // namespace fulgurite
