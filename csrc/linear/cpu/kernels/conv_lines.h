// Channels as lines of the accumulation type, neighbouring positions next to each other, whatever their order in memory.
#pragma once

#include "linear/cpu/kernels/params.h"
#include "linear/cpu/kernels/stage.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Positions that are staged at once: so many that lines have left the store buffer before unaligned vectors are loaded from them. A
/// bfloat16 forward of 1536 contiguous channels takes 0.44 ms for 512 positions, and 0.52 ms in chunks of 128.
inline constexpr int64_t kConvChunk = 512;

/// Elements of a line: W − 1 inputs before a chunk, the chunk, and what whole vectors reach beyond it.
template <class T>
FULGURITE_INLINE int64_t line_length(int64_t W) {
  return pad_lanes<T>(W - 1 + kConvChunk + 2 * kLanes<T>);
}

/// Channels that a task stages at once: those that share cache lines.
FULGURITE_INLINE int64_t channels_at_once(const Signal& signal) {
  return signal.data && signal.position != 1 ? kConvChannels : 1;
}

/// A sequence as a task sees it, from channel c on.
template <class S>
struct Inputs {
  Rows<S> x, initial;  // from position 0; initial.data null: zeros
  int64_t W;

  Inputs(const CausalConv1dProblem& p, int64_t sequence, int64_t c) : W(p.W) {
    const Span& span = p.parts.sequences[sequence];
    x = rows_of<S>(p.x, span.batch, c, span.start);
    initial = rows_of<S>(p.initial_state, sequence, c, 0);
  }
  /// Input t of channel c, before the sequence for t < 0.
  S at(int64_t c, int64_t t) const {
    if (t >= 0) return x.at(c, t);
    return initial.data ? initial.at(c, t + W - 1) : S{};
  }
  /// Positions [first, first + n) behind the W − 1 before them.
  template <class T>
  void stage_with_past(int64_t channels, int64_t first, int64_t n, T* to, int64_t ld) const {
    const int64_t before = first - (W - 1), missing = before < 0 ? -before : 0;
    for (int64_t c = 0; c < channels && missing > 0; ++c)
      for (int64_t i = 0; i < missing && i < n + W - 1; ++i)
        to[c * ld + i] = to_accumulate(at(c, before + i));
    if (missing < n + W - 1)
      stage(Rows<S>{x.data + (before + missing) * x.position, x.channel, x.position}, channels,
            n + W - 1 - missing, to + missing, ld);
  }
};

/// Weights (kConvChannels,W) and biases of a task's channels.
template <class T>
struct Filters {
  T *weight, *bias;
  int64_t W;

  Filters(Arena& arena, int64_t W)
      : weight(arena.take<T>(kConvChannels * W)), bias(arena.take<T>(kConvChannels)), W(W) {}

  template <class S>
  void read(const CausalConv1dProblem& p, int64_t c0, int64_t channels) {
    with_stored<S>(p.weight.float32, [&](auto stored) {
      const auto from = rows_of<decltype(stored)>(p.weight, 0, c0, 0);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t w = 0; w < W; ++w) weight[c * W + w] = to_accumulate(from.at(c, w));
    });
    read_channels<S>(p.bias, c0, channels, bias);
  }
};

/// sum_i = start_i + Σ_w weight_w·line_{i + w}, in order of w, for kCount vectors; `backwards`: line_{i + W − 1 − w}.
template <int kCount, bool kBackwards, class T>
FULGURITE_INLINE void weighted(const T* line, const T* weight, int64_t W,
                               Native<T> (&sum)[kCount]) {
  using V = Native<T>;
  for (int64_t w = 0; w < W; ++w) {
    const V factor = splat<V>(weight[w]);
    const T* const from = line + (kBackwards ? W - 1 - w : w);
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) sum[k] = madd(factor, load<V>(from + k * kWidth<V>), sum[k]);
  }
}

/// Calls visit(i, count) over n elements, `count` vectors at a time, at most 4, as a constant.
template <class T, class Visit>
FULGURITE_INLINE void for_vectors(int64_t n, const Visit& visit) {
  for (int64_t i = 0; i < n; i += 4 * kLanes<T>)
    with_count<4>(ceil_div(n - i, kLanes<T>), [&](auto count) { visit(i, count); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
