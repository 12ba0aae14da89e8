// Signals of any strides copied into rows of the accumulation type, and numbers stored in one of two types.
#pragma once

#include "linear/rules/problem.h"
#include "simd/kernel.h"
#include "simd/pack.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Two strides of a signal from one of its places on.
template <class S>
struct Rows {
  const S* data;
  int64_t channel, position;

  const S& at(int64_t c, int64_t t) const { return data[c * channel + t * position]; }
};

template <class S>
FULGURITE_INLINE Rows<S> rows_of(const Signal& signal, int64_t batch, int64_t c, int64_t t) {
  if (!signal.data) return {nullptr, 0, 0};
  return {static_cast<const S*>(signal.data) + batch * signal.batch + c * signal.channel +
              t * signal.position,
          signal.channel, signal.position};
}

/// Runs visitor(S{}) for the type that an input, or its gradient, is stored in: `S`, or float32.
template <class S, class Visitor>
FULGURITE_INLINE void with_stored(bool float32, const Visitor& visitor) {
  if (float32)
    visitor(float{});
  else
    visitor(S{});
}

/// A number for each of `channels` channels; zeros where it is not given, and to the end of a vector.
template <class S, class T>
void read_channels(const Input& from, int64_t first, int64_t channels, T* to) {
  for (int64_t c = 0; c < pad_lanes<T>(channels); ++c) to[c] = 0;
  if (!from.data) return;
  with_stored<S>(from.float32, [&](auto stored) {
    const auto row = rows_of<decltype(stored)>(from, 0, first, 0);
    for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<T>(to_accumulate(row.at(c, 0)));
  });
}

/// to[at] = value where it is wanted.
template <class S, class T>
FULGURITE_INLINE void store_number(void* to, bool float32, int64_t at, T value) {
  if (!to) return;
  with_stored<S>(float32, [&](auto stored) {
    using X = decltype(stored);
    static_cast<X*>(to)[at] = from_accumulate<X>(static_cast<Accumulate<X>>(value));
  });
}

/// to[c·ld + i] = x(c, i) for n positions of `channels` channels, then zeros to the end of a vector. Where channels are
/// neighbours in memory, squares are turned in registers.
template <class T, class S>
inline void stage(Rows<S> x, int64_t channels, int64_t n, T* to, int64_t ld) {
  using V = Native<T>;
  if (x.channel != 1 || x.position == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const S* const row = x.data + c * x.channel;
      for (int64_t i = 0; i < n; i += kWidth<V>)
        store(to + c * ld + i, load_strided<V>(row + i * x.position, x.position, n - i));
    }
    return;
  }
  using Moves = TurnedMoves<T, S>;
  constexpr int W = kWidth<Moves>, kSteps = kTurnedSteps<T, S>;
  for (int64_t c0 = 0; c0 < channels; c0 += W * kSteps)
    for (int64_t i = 0; i < n; i += W) {
      const Strided<S> square_of{x.data + i * x.position + c0, x.position, 1};
      Moves square[W];
      load_transposed<T>(square_of, n - i, channels - c0, square);
      prefetch_below<W>(square_of);
      const int64_t rows = channels - c0 < W * kSteps ? channels - c0 : W * kSteps;
      for (int64_t k = 0; k < rows; ++k)
        store(to + (c0 + k) * ld + i,
              turned_step<T, S>(square[k / kSteps], static_cast<int>(k % kSteps)));
    }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
