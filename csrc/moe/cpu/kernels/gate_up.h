// Where the gates and ups of the experts' hidden layer stand in a row.
#pragma once

#include "moe/cpu/kernels/experts_common.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr int64_t kHiddenWidth = 2 * kHiddenBlock;  // of a task's product: gates beside ups

template <class V>
struct GateUp {
  V gate, up;
};

template <class V, int... Lane>
FULGURITE_INLINE GateUp<V> part_pairs(V low, V high, std::integer_sequence<int, Lane...>) {
  return {__builtin_shufflevector(low, high, (2 * Lane)...),
          __builtin_shufflevector(low, high, (2 * Lane + 1)...)};
}
/// Low and high half of gate, up, gate, up, …
template <class V, int... Lane>
FULGURITE_INLINE GateUp<V> pair_up(GateUp<V> x, std::integer_sequence<int, Lane...>) {
  constexpr int W = kWidth<V>;
  return {__builtin_shufflevector(x.gate, x.up, (Lane / 2 + Lane % 2 * W)...),
          __builtin_shufflevector(x.gate, x.up, (W / 2 + Lane / 2 + Lane % 2 * W)...)};
}

/// Columns of the hidden layer: I gates; I gates, then I ups; or I pairs of them. `apart` is how far an up is from its gate
/// where they are not pairs: I, or kHiddenBlock in a task's product.
struct GateColumns {
  bool gated, interleaved;

  explicit GateColumns(const HiddenParams& p) : gated(p.gated), interleaved(p.interleaved) {}

  /// The column of gate i.
  int64_t first(int64_t i) const { return interleaved ? 2 * i : i; }

  /// Calls part(column, count, at) for each run of columns that gates and ups [i0, i0 + n) are; `at` is its column in a task's
  /// product.
  template <class Part>
  FULGURITE_INLINE void for_parts(int64_t i0, int64_t n, int64_t I, const Part& part) const {
    if (interleaved) return part(2 * i0, 2 * n, int64_t{0});
    part(i0, n, int64_t{0});
    if (gated) part(I + i0, n, kHiddenBlock);
  }

  /// Gates and ups of columns c … of a task, whose gates begin at `row`.
  template <class V, class S>
  FULGURITE_INLINE GateUp<V> load(const S* row, int64_t apart, int64_t c, int64_t lanes) const {
    constexpr int W = kWidth<V>;
    if (!gated) return {load_lanes<V>(row + c, lanes), V{}};
    if (!interleaved) return {load_lanes<V>(row + c, lanes), load_lanes<V>(row + apart + c, lanes)};
    const int64_t n = 2 * lanes;
    const V low = load_lanes<V>(row + 2 * c, at_most(W, n));
    const V high = n > W ? load_lanes<V>(row + 2 * c + W, n - W) : V{};
    return part_pairs(low, high, std::make_integer_sequence<int, W>{});
  }

  template <class S, class V>
  FULGURITE_INLINE void store(S* row, int64_t apart, int64_t c, int64_t lanes, GateUp<V> x) const {
    constexpr int W = kWidth<V>;
    if (!interleaved) {
      store_lanes(row + c, x.gate, lanes);
      if (gated) store_lanes(row + apart + c, x.up, lanes);
      return;
    }
    const int64_t n = 2 * lanes;
    const auto [low, high] = pair_up(x, std::make_integer_sequence<int, W>{});
    store_lanes(row + 2 * c, low, at_most(W, n));
    if (n > W) store_lanes(row + 2 * c + W, high, n - W);
  }
};

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
