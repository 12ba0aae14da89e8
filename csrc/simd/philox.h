// Philox's words in the order of what they are for: word e mod 4 of counter ⌊e/4⌋ belongs to element e.
#pragma once

#include "common/philox.h"
#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Counters that one vector holds, and the words they give.
inline constexpr int kCounters = kLanes<uint64_t>, kCounterWords = 4 * kCounters;
using Counters = Native<uint64_t>;

/// first, first + 1, …
FULGURITE_INLINE Counters counters_from(uint64_t first) {
  return bit_cast<Counters>(lane_index<Counters>()) + first;
}

/// Lanes First, First + 1, … of a and b in turn.
template <int First, class V, int... Lane>
FULGURITE_INLINE V interleaved(V a, V b, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(a, b, (First + Lane / 2 + Lane % 2 * kCounters)...);
}

/// Word k of every counter stands in words[k], below 2³²: written counter by counter.
FULGURITE_INLINE void store_words(uint32_t* to, const Counters (&words)[4]) {
  constexpr auto kAll = std::make_integer_sequence<int, kCounters>{};
  const Counters first = words[0] | (words[1] << 32), second = words[2] | (words[3] << 32);
  store(to, interleaved<0>(first, second, kAll));
  store(to + 2 * kCounters, interleaved<kCounters / 2>(first, second, kAll));
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
