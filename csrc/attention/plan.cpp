#include "attention/plan.h"

#include <algorithm>

#include "common/ceil_div.h"

namespace fulgurite {

/// The blocks of a sequence are as even as whole strips allow.
int64_t AttentionPlan::query_rows(int64_t N) const {
  constexpr int64_t kStrips = 12;  // strips are 6 or 4 rows
  if (N <= limits_.query_rows) return std::max<int64_t>(N, 1);
  return ceil_div(ceil_div(N, ceil_div(N, limits_.query_rows)), kStrips) * kStrips;
}

void AttentionPlan::add_sequence(int64_t query_start, int64_t N, int64_t key_start, int64_t M) {
  const int64_t packed = ceil_div(M, limits_.key_multiple) * limits_.key_multiple;
  add({query_start, N, key_start, M, query_rows(N), query_blocks_, key_blocks_, packed_keys_,
       packed},
      ceil_div(M, limits_.keys));
  packed_keys_ += packed;
}

void AttentionPlan::add_splits(int64_t N, int64_t M, int64_t split_keys) {
  add({0, N, 0, M, query_rows(N), query_blocks_, key_blocks_, 0, 0}, ceil_div(M, split_keys));
}

void AttentionPlan::add(const Sequence& sequence, int64_t key_blocks) {
  sequences_.push_back(sequence);
  query_blocks_ += ceil_div(sequence.N, sequence.query_rows);
  key_blocks_ += key_blocks;
  pairs_ += sequence.N * sequence.M;
}

void AttentionPlan::describe(AttentionProblem& p) const {
  p.sequences = sequences_.data();
  p.B = static_cast<int64_t>(sequences_.size());
  p.query_blocks = query_blocks_;
  p.key_blocks = key_blocks_;
}

}  // namespace fulgurite
