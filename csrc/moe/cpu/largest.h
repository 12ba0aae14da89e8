// The K largest of a token's E keys, one token in each lane: a falling list is kept while the experts pass by.
//
//   g_j = x > top_j        top_j = g_{j−1} ? top_{j−1} : g_j ? x : top_j
//
// What stands in the list stays before an equal newcomer, so ties go to the lowest index. Five instructions for each expert
// and place of the list serve every lane.
#pragma once

#include "simd/pack.h"

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

/// Inserts every expert's keys: `keys` are rows of `padded` keys, one for each lane's token.
template <class V>
FULGURITE_INLINE void insert_all(const Element<V>* keys, int64_t padded, int64_t E, V* top, V* at,
                                 int64_t places) {
  constexpr int W = kWidth<V>;
  for (int64_t e0 = 0; e0 < E; e0 += W) {
    V block[W];
#pragma GCC unroll 16
    for (int lane = 0; lane < W; ++lane) block[lane] = load<V>(keys + lane * padded + e0);
    transpose<W / 2>(block);
    for (int i = 0; i < W && e0 + i < E; ++i)
      insert(block[i], splat<V>(static_cast<Element<V>>(e0 + i)), top, at, places);
  }
}

template <int Places, class V>
void largest_in_registers(const Element<V>* keys, int64_t padded, int64_t E, V lowest, V* to) {
  V top[Places], at[Places] = {};
#pragma GCC unroll 8
  for (int j = 0; j < Places; ++j) top[j] = lowest;
  insert_all<V>(keys, padded, E, top, at, Places);
  for (int j = 0; j < Places; ++j) to[j] = at[j];
}

template <int Places, class V>
FULGURITE_INLINE void largest_of_few(const Element<V>* keys, int64_t padded, int64_t E, int64_t K,
                                     V lowest, V* to) {
  if (K == Places) return largest_in_registers<Places>(keys, padded, E, lowest, to);
  if constexpr (Places > 1) largest_of_few<Places - 1>(keys, padded, E, K, lowest, to);
}

/// to[j] = the experts of the j-th largest keys, by falling key, lane by lane; no key is as low as `lowest` unless it is not to
/// be taken. `top`: K vectors.
template <class V>
void largest(const Element<V>* keys, int64_t padded, int64_t E, int64_t K, V lowest, V* top,
             V* to) {
  if (K <= kRegisterPlaces) return largest_of_few<kRegisterPlaces>(keys, padded, E, K, lowest, to);
  for (int64_t j = 0; j < K; ++j) {
    top[j] = lowest;
    to[j] = V{};
  }
  insert_all<V>(keys, padded, E, top, to, K);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
