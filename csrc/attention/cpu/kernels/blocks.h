// Tasks as blocks of one head of one sequence, for kernels and for those who call them.
#pragma once

#include "attention/cpu/kernels/params.h"
#include "common/ceil_div.h"

namespace fulgurite {

/// One block of rows of one head: head is a query head for query blocks and a key/value head for key blocks.
struct Block {
  int64_t b, head, index;  // index: of the block within its sequence
};

/// The block of a task. Tasks run over sequences, then heads, then blocks of the sequence.
FULGURITE_HOST_DEVICE Block block_of(const AttentionParams& p, int64_t task, int64_t heads,
                                     int64_t Sequence::* first, int64_t total) {
  int64_t low = 0, high = p.B;  // the last sequence whose first task is not beyond `task`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.sequences[middle].*first * heads <= task ? low : high) = middle;
  }
  const int64_t begin = p.sequences[low].*first,
                end = low + 1 < p.B ? p.sequences[low + 1].*first : total;
  const int64_t within = task - begin * heads;
  return {low, within / (end - begin), within % (end - begin)};
}
FULGURITE_HOST_DEVICE Block query_block_of(const AttentionParams& p, int64_t task) {
  return block_of(p, task, p.Hq, &Sequence::query_block, p.query_blocks);
}
FULGURITE_HOST_DEVICE Block key_block_of(const AttentionParams& p, int64_t task) {
  return block_of(p, task, p.Hkv, &Sequence::key_block, p.key_blocks);
}

/// The number of a query block: the task of query_block_of.
FULGURITE_HOST_DEVICE int64_t query_block_index(const AttentionParams& p, int64_t b, int64_t h,
                                                int64_t block) {
  const Sequence& s = p.sequences[b];
  return s.query_block * p.Hq + h * ceil_div(s.N, s.query_rows) + block;
}

/// Of a sequence that is not cut into splits.
FULGURITE_HOST_DEVICE int64_t key_blocks_of(const Sequence& s) { return ceil_div(s.M, kKeyBlock); }

/// Parts of dQ that its blocks use.
FULGURITE_HOST_DEVICE int64_t query_parts_of(const Sequence& s) {
  const int64_t blocks = key_blocks_of(s);
  return blocks < kQueryParts ? blocks : kQueryParts;
}

}  // namespace fulgurite
