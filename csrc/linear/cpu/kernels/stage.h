// Signals of any strides copied into rows of the accumulation type.
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
