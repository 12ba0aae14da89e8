// Blocks of keys and values as operands of products: in copies that a call packs once for all of its tasks, or, where one task
// alone reads a block, in that task's scratch, where they stay in the cache.
#pragma once

#include "attention/cpu/kernels/tile.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// One block of one key/value head; null: not wanted.
template <class E>
struct PackedBlock {
  E* key_transposed = nullptr;    // Kᵀ: D rows of keys
  E* key_rows = nullptr;          // K: keys by D
  E* value_transposed = nullptr;  // Vᵀ
  E* value_rows = nullptr;        // V
  bool key_finite = false, value_finite = false;
};

/// Packs a block in the layouts that `to` has places for.
template <class S>
void pack_block(const AttentionParams& p, const Block& k, PackedBlock<Operand<S>>& to) {
  using E = Operand<S>;
  const Sequence& s = p.sequences[k.b];
  const int64_t j0 = k.index * kKeyBlock, keys = s.M - j0 < kKeyBlock ? s.M - j0 : kKeyBlock;
  const Strided<S> key = rows_of<S>(p.key, k.b, k.head, s.key_start + j0),
                   value = rows_of<S>(p.value, k.b, k.head, s.key_start + j0);
  if (to.key_transposed) {
    pack_transposed<E>(key, keys, p.D, to.key_transposed);
    to.key_finite = all_finite(to.key_transposed, pad_columns<E>(keys) * pad_depth<E>(p.D));
  }
  if (to.key_rows) pack_rows<E>(key, keys, p.D, to.key_rows);
  if (to.value_transposed) pack_transposed<E>(value, keys, p.Dv, to.value_transposed);
  if (to.value_rows) {
    pack_rows<E>(value, keys, p.Dv, to.value_rows);
    to.value_finite = all_finite(to.value_rows, pad_depth<E>(keys) * pad_columns<E>(p.Dv));
  }
}

/// Where a block lies in the copies of the call.
template <class S>
FULGURITE_INLINE PackedBlock<Operand<S>> place_of_block(const AttentionParams& p, const Block& k) {
  using E = Operand<S>;
  const Sequence& s = p.sequences[k.b];
  const int64_t keys = s.packed_start * p.Hkv + k.head * s.packed_keys + k.index * kKeyBlock;
  const auto from = [keys](void* copies, int64_t width) {
    return copies ? static_cast<E*>(copies) + keys * width : nullptr;
  };
  return {from(p.key_transposed, pad_depth<E>(p.D)), from(p.key_rows, pad_columns<E>(p.D)),
          from(p.value_transposed, pad_depth<E>(p.Dv)), from(p.value_rows, pad_columns<E>(p.Dv))};
}

/// A block that was packed there.
template <class S>
FULGURITE_INLINE PackedBlock<Operand<S>> packed_block(const AttentionParams& p, const Block& k) {
  PackedBlock<Operand<S>> block = place_of_block<S>(p, k);
  const Sequence& s = p.sequences[k.b];
  const int64_t task = s.key_block * p.Hkv + k.head * key_blocks_of(s) + k.index;
  block.key_finite = p.key_finite[task];
  block.value_finite = p.value_finite[task];
  return block;
}

/// A block as the task at hand reads it: of the call, or packed into `own`, the task's.
template <class S>
FULGURITE_INLINE const PackedBlock<Operand<S>>& read_block(const AttentionParams& p, const Block& k,
                                                           PackedBlock<Operand<S>>& own) {
  if (p.packs_in_tasks)
    pack_block<S>(p, k, own);
  else
    own = packed_block<S>(p, k);
  return own;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
