// Blocks of positions of a selective scan as tiles of the accumulation type, channels next to each other, whatever their order in
// memory; and states, which lie with their channels next to each other too.
#pragma once

#include "linear/cpu/kernels/params.h"
#include "linear/cpu/kernels/stage.h"
#include "simd/math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// e^(δ·a), 0 for −inf; beyond float32 infinite from e^88.4 on.
template <class V>
FULGURITE_INLINE V decay_factor(V exponent) {
  constexpr auto kHighest = sizeof(Element<V>) == 8 ? Element<V>(710) : Element<V>(89);
  return exp_flushed(min(splat<V>(kHighest), exponent));
}

/// log(1 + e^x), to the last digits where e^x is small.
template <class V>
FULGURITE_INLINE V softplus(V x) {
  using T = Element<V>;
  const V e = exp(-abs(x)), one_more = e + T(1), rounded = one_more - T(1);
  const V log1p = rounded == T(0) ? e : log(one_more) * (e / rounded);
  return max(x, V{}) + log1p;
}

/// Channels of a task within one group, and its sequence.
struct ScanPlace {
  int64_t sequence, group, first, channels;
  Span span;

  /// `width` channels at most.
  ScanPlace(const SelectiveScanProblem& p, int64_t task, int64_t width) {
    const int64_t of_group = p.D / p.G, blocks = ceil_div(of_group, width);
    sequence = task / (p.G * blocks);
    group = task / blocks % p.G;
    const int64_t within = task % blocks * width;
    first = group * of_group + within;
    channels = of_group - within < width ? of_group - within : width;
    span = p.parts.sequences[sequence];
  }
};

/// to[i·ld + c] = x(channel first + c, position t + i), zeros past the channels to the end of a vector.
template <class S, class T>
void stage_channels(const Input& x, const ScanPlace& place, int64_t t, int64_t n, T* to,
                    int64_t ld) {
  with_stored<S>(x.float32, [&](auto stored) {
    using X = decltype(stored);
    const Rows<X> from = rows_of<X>(x, place.span.batch, place.first, place.span.start + t);
    stage(Rows<X>{from.data, from.position, from.channel}, n, place.channels, to, ld);
  });
}

/// to[i·ld + k] = x(k, position t + i) of the task's group, N columns.
template <class S, class T>
void stage_columns(const GroupedInput& x, const ScanPlace& place, int64_t t, int64_t n, int64_t N,
                   T* to, int64_t ld) {
  with_stored<S>(x.float32, [&](auto stored) {
    using X = decltype(stored);
    Rows<X> from = rows_of<X>(x, place.span.batch, 0, place.span.start + t);
    from.data += place.group * x.group;
    stage(Rows<X>{from.data, from.position, from.channel}, n, N, to, ld);
  });
}

/// to[k·ld + c] = rows(c, k): states, or A, with their channels next to each other.
template <class X, class T>
void stage_states(Rows<X> from, int64_t channels, int64_t N, T* to, int64_t ld) {
  stage(Rows<X>{from.data, from.position, from.channel}, N, channels, to, ld);
}

/// States (sequences,D,N) of the task's channels, zeros where they are not given.
template <class T>
void read_states(const Signal& from, const ScanPlace& place, int64_t N, T* to, int64_t ld) {
  for (int64_t i = 0; i < N * ld; ++i) to[i] = 0;
  if (from.data)
    stage_states(rows_of<T>(from, place.sequence, place.first, 0), place.channels, N, to, ld);
}

/// n elements each of `rows` rows, `ld` apart, from a tile whose rows are their columns.
template <class S, class T>
void store_turned(const T* tile, int64_t tile_ld, int64_t rows, int64_t n, S* to, int64_t ld) {
  using V = Native<T>;
  constexpr int W = kWidth<V>;
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t i = 0; i < n; i += W) {
      V square[W];
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k)
        square[k] = i + k < n ? load<V>(tile + (i + k) * tile_ld + r) : V{};
      transpose<W / 2>(square);
      for (int k = 0; k < W && r + k < rows; ++k)
        store_up_to(to + (r + k) * ld + i, square[k], n - i);
    }
}

/// The same from element `at` on, in S or float32, where it is wanted.
template <class S, class T>
void store_rows(void* to, bool float32, int64_t at, const T* tile, int64_t tile_ld, int64_t rows,
                int64_t n, int64_t ld) {
  if (!to) return;
  with_stored<S>(float32, [&](auto stored) {
    store_turned(tile, tile_ld, rows, n, static_cast<decltype(stored)*>(to) + at, ld);
  });
}

/// Positions of a sequence [t, t + n) of the task's channels, from tile[i·ld + c], to a result (B,D,L).
template <class S, class T>
void store_channels(const SelectiveScanProblem& p, const ScanPlace& place, int64_t t, int64_t n,
                    const T* tile, int64_t ld, bool float32, void* to) {
  const int64_t at = (place.span.batch * p.D + place.first) * p.L + place.span.start + t;
  store_rows<S>(to, float32, at, tile, ld, place.channels, n, p.L);
}

/// delta of a block as δ in place, and what softplus is of, where somebody wants it.
template <class S, class T>
void stage_delta(const SelectiveScanProblem& p, const ScanPlace& place, int64_t t, int64_t n,
                 const T* bias, T* delta, T* before, int64_t ld) {
  using V = Native<T>;
  stage_channels<S>(p.delta, place, t, n, delta, ld);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < place.channels; c += kWidth<V>) {
      const V raw = load<V>(delta + i * ld + c) + load<V>(bias + c);
      if (before) store(before + i * ld + c, raw);
      store(delta + i * ld + c, p.softplus ? softplus(raw) : raw);
    }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
