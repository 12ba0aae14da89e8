// From the sizes of a call of attention to its sequences and their blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/rules/problem.h"

namespace fulgurite {

/// What a device's kernels ask for.
struct BlockLimits {
  int64_t query_rows;    // of a query block, at most
  int64_t keys;          // of a key block
  int64_t key_multiple;  // of packed keys
};

class AttentionPlan {
 public:
  explicit AttentionPlan(const BlockLimits& limits) : limits_(limits) {}

  /// Every batch entry a problem of the same size.
  void add_batch(int64_t B, int64_t N, int64_t M) {
    for (int64_t b = 0; b < B; ++b) add_sequence(0, N, 0, M);
  }
  void add_sequence(int64_t query_start, int64_t N, int64_t key_start, int64_t M);
  /// A sequence whose key blocks are splits of `split_keys` keys, which nobody packs.
  void add_splits(int64_t N, int64_t M, int64_t split_keys);

  /// Sets sequences, B and the numbers of blocks; the plan outlives the problem.
  void describe(AttentionProblem& problem) const;
  int64_t packed_keys() const { return packed_keys_; }  // over all sequences, per key/value head
  int64_t pairs() const { return pairs_; }  // of queries and keys, over all sequences, per head

 private:
  int64_t query_rows(int64_t N) const;
  void add(const Sequence& sequence, int64_t key_blocks);

  BlockLimits limits_;
  std::vector<Sequence> sequences_;
  int64_t query_blocks_ = 0, key_blocks_ = 0, packed_keys_ = 0, pairs_ = 0;
};

}  // namespace fulgurite
