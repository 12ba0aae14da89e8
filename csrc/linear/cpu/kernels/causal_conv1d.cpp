// A causal convolution of each channel by itself, and the inputs that the next call goes on from,
//   out_t = act(bias + Σ_{w<W} weight_w·x_{t−W+1+w})      state = the last W − 1 inputs, bit for bit
// act is none or x·σ(x). Inputs before the first come from initial_state, or are zeros.
//
// Reads: x, weight, bias, initial_state, of any strides.
// Writes: out and state, contiguous.
// Task: a group of pieces of sequences by a block of kConvChannels channels.
// Order of sums: the bias, then w from 0 on; so an output's bits do not depend on where a call begins.

#include "linear/cpu/kernels/conv_lines.h"
#include "simd/math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct ForwardScratch {
  Filters<T> filters;
  int64_t ld;
  T* lines;

  ForwardScratch(void* base, int64_t W) : ForwardScratch(Arena(base), W) {}
  int64_t bytes() const { return bytes_; }

 private:
  ForwardScratch(Arena arena, int64_t W)
      : filters(arena, W),
        ld(line_length<T>(W)),
        lines(arena.take<T>(kConvChannels * ld)),
        bytes_(arena.used()) {}
  int64_t bytes_;
};

/// x·σ(x) by e^−|x|, which is 0 where it is too small for a normal number: to a relative error of 3e-6 where 16 bits will hold it.
template <class S, class V>
FULGURITE_INLINE V silu_of(V x) {
  V e;
  if constexpr (sizeof(S) == 2)
    e = exp2_rough(abs(x) * Element<V>(-1.4426950408889634));
  else
    e = exp_flushed(-abs(x));
  return x * (x < 0 ? e : splat<V>(1)) / (e + Element<V>(1));
}

/// n outputs of a channel, whose first input is line[0].
template <bool kSilu, class T, class S>
void convolve(const T* line, const T* weight, T bias, int64_t W, int64_t n, S* out) {
  using V = Native<T>;
  for_vectors<T>(n, [&](int64_t i, auto count) {
    V sum[count];
    for (V& s : sum) s = splat<V>(bias);
    weighted<count, false>(line + i, weight, W, sum);
    for (int k = 0; k < count; ++k) {
      const V result = kSilu ? silu_of<S>(sum[k]) : sum[k];
      store_up_to(out + i + k * kWidth<V>, result, n - i - k * kWidth<V>);
    }
  });
}

template <class S, class T>
void forward_chunks(const CausalConv1dParams& p, const Inputs<S>& inputs, const Piece& piece,
                    const T* weight, const T* bias, int64_t channels, T* lines, int64_t ld,
                    S* out) {
  const bool silu = p.activation == ConvActivation::kSilu;
  for (int64_t t = piece.begin; t < piece.end; t += kConvChunk) {
    const int64_t n = piece.end - t < kConvChunk ? piece.end - t : kConvChunk;
    inputs.stage_with_past(channels, t, n, lines, ld);
    for (int64_t c = 0; c < channels; ++c) {
      S* const to = out + c * p.L + t;
      if (silu)
        convolve<true>(lines + c * ld, weight + c * p.W, bias[c], p.W, n, to);
      else
        convolve<false>(lines + c * ld, weight + c * p.W, bias[c], p.W, n, to);
    }
  }
}

template <class S>
void write_state(const CausalConv1dParams& p, const Inputs<S>& inputs, int64_t length,
                 int64_t channels, S* state) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t j = 0; j < p.W - 1; ++j)
      state[c * (p.W - 1) + j] = inputs.at(c, length - (p.W - 1) + j);
}

template <class S>
void forward_task(const CausalConv1dParams& p, int64_t task, void* memory) {
  using T = Accumulate<S>;
  const int64_t blocks = conv_channel_blocks(p), group = task / blocks,
                first = task % blocks * kConvChannels,
                last = p.C - first < kConvChannels ? p.C : first + kConvChannels;
  ForwardScratch<T> s(memory, p.W);
  s.filters.template read<S>(p, first, last - first);
  const int64_t at_once = channels_at_once(p.x);
  for (int64_t i = p.parts.groups[group]; i < p.parts.groups[group + 1]; ++i) {
    const Piece& piece = p.parts.pieces[i];
    const Span& span = p.parts.sequences[piece.sequence];
    for (int64_t c = first; c < last; c += at_once) {
      const int64_t channels = last - c < at_once ? last - c : at_once;
      const Inputs<S> inputs(p, piece.sequence, c);
      forward_chunks(p, inputs, piece, s.filters.weight + (c - first) * p.W,
                     s.filters.bias + (c - first), channels, s.lines, s.ld,
                     static_cast<S*>(p.out) + (span.batch * p.C + c) * p.L + span.start);
      if (piece.end == span.length)
        write_state(p, inputs, span.length, channels,
                    static_cast<S*>(p.state) + (piece.sequence * p.C + c) * (p.W - 1));
    }
  }
}

}  // namespace

void causal_conv1d_layout(const CausalConv1dParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    *bytes = ForwardScratch<Accumulate<decltype(s)>>(nullptr, p.W).bytes();
  });
}

void causal_conv1d(const CausalConv1dParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { forward_task<decltype(s)>(p, task, scratch); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
