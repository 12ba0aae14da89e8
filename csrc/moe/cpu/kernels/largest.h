// The K largest of a token's keys, one token in each lane: a falling list is kept while the experts pass by.
//
//   g_j = x > top_j        top_j = g_{j−1} ? top_{j−1} : g_j ? x : top_j
//
// What stands in the list stays before an equal newcomer, so ties go to the lowest index. Five instructions for each expert
// and place of the list serve every lane.
#pragma once

#include "simd/vec.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Lists of as many places stay in registers.
inline constexpr int kRegisterPlaces = 8;

template <class V>
FULGURITE_INLINE void insert(V x, V expert, V* top, V* at, int64_t places) {
#pragma GCC unroll 8
  for (int64_t j = places - 1; j > 0; --j) {
    const V before = x > top[j - 1], here = x > top[j];
    top[j] = before ? top[j - 1] : here ? x : top[j];
    at[j] = before ? at[j - 1] : here ? expert : at[j];
  }
  const V first = x > top[0];
  top[0] = first ? x : top[0];
  at[0] = first ? expert : at[0];
}

/// `keys`: a vector for each expert.
template <class V>
FULGURITE_INLINE void insert_all(const V* keys, int64_t E, V* top, V* at, int64_t places) {
  for (int64_t e = 0; e < E; ++e)
    insert(keys[e], splat<V>(static_cast<Element<V>>(e)), top, at, places);
}

template <int Places, class V>
void largest_in_registers(const V* keys, int64_t E, V lowest, V* top, V* at) {
  V keep[Places], where[Places] = {};
#pragma GCC unroll 8
  for (int j = 0; j < Places; ++j) keep[j] = lowest;
  insert_all<V>(keys, E, keep, where, Places);
  for (int j = 0; j < Places; ++j) {
    top[j] = keep[j];
    at[j] = where[j];
  }
}

/// top[j] and at[j]: the j-th largest key and whose it is, lane by lane; no key is as low as `lowest` unless it is not to be
/// taken.
template <class V>
void largest(const V* keys, int64_t E, int64_t K, V lowest, V* top, V* at) {
  if (K <= kRegisterPlaces)
    return with_count<kRegisterPlaces>(K, [&](auto places) {
      largest_in_registers<decltype(places)::value>(keys, E, lowest, top, at);
    });
  for (int64_t j = 0; j < K; ++j) {
    top[j] = lowest;
    at[j] = V{};
  }
  insert_all<V>(keys, E, top, at, K);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
