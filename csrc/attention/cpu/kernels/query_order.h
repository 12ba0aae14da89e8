// The order in which key blocks add to dQ. The blocks j, j + kQueryParts, … of a head add to one part of it, in this order for
// every element: the sums are the same whether one thread runs the blocks or each block has a thread. A block waits with its
// product, not with its scores, until the earlier blocks of its part are past the tile.
//
// Tasks are taken in order, so every earlier block is under way or done, and the first block that is not done never waits.
#pragma once

#include <sched.h>

#include "attention/cpu/kernels/params.h"
#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// One block's place in the order. Every block of a head goes through the same tiles, one for each query block and head of the group.
class QueryOrder {
 public:
  /// `done`: tiles of every task, 0 before the first. `task`: the block's, `block`: its index in its sequence.
  FULGURITE_INLINE QueryOrder(int64_t* done, int64_t task, int64_t block)
      : done_(done + task - block), block_(block), oldest_(block % kQueryParts) {}

  /// Until the earlier blocks of the part have done this tile.
  FULGURITE_INLINE void wait() {
    for (int64_t other = oldest_; other < block_; other += kQueryParts) {
      const int64_t done = wait_past(other);
      if (done == kEnded && other == oldest_) oldest_ += kQueryParts;
    }
  }
  /// This tile is done.
  FULGURITE_INLINE void next() { publish(++tile_); }
  FULGURITE_INLINE void end() { publish(kEnded); }

 private:
  static constexpr int64_t kEnded = INT64_MAX;

  FULGURITE_INLINE void publish(int64_t tiles) {
    __atomic_store_n(done_ + block_, tiles, __ATOMIC_RELEASE);
  }
  FULGURITE_INLINE int64_t wait_past(int64_t block) const {
    int64_t done;
    while ((done = __atomic_load_n(done_ + block, __ATOMIC_ACQUIRE)) <= tile_) sched_yield();
    return done;
  }

  int64_t* done_;  // tiles of the blocks of the sequence and head
  int64_t block_, tile_ = 0;
  int64_t oldest_;  // the first block of the part that may not have ended
};

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
