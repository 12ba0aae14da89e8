// Gradients of the causal convolution. With pre_t = bias + Σ_w weight_w·x_{t−W+1+w}, computed again, and d_t = dout_t·act'(pre_t),
//   dx_s = dstate_s + Σ_w weight_w·d_{s+W−1−w}      for s < 0 it is the gradient of initial_state; dstate_s: where s is in the state
//   dweight_w = Σ_t d_t·x_{t−W+1+w}      dbias = Σ_t d_t      over all sequences
//
// Reads: x, weight, bias, initial_state, grad_out, grad_state, of any strides.
// Writes: grad_x and grad_initial_state; sums of a group of pieces, which causal_conv1d_sums adds up to grad_weight and grad_bias.
// Task: a group of pieces of sequences by a block of kConvChannels channels; sums: a range of channels.
// Order of sums: dx_s from dstate_s and w = 0, the latest d, on, so that a call in pieces has the bits of the whole; sums lane by lane
//   from the last chunk of a piece to its first, over lanes once, then over groups in order.

#include "common/silu.h"
#include "linear/cpu/kernels/conv_lines.h"
#include "simd/rule_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct BackwardScratch {
  Filters<T> filters;
  int64_t W, ld;
  T *x, *d;  // lines of inputs and of d, whose W − 1 after the chunk are those of the chunk before
  T* next;   // (kConvChannels,W−1): the first of the chunk before
  T* start;  // dstate of a chunk
  T* zeros;  // of a chunk
  T* sums;   // (kConvChannels,W+1) vectors

  BackwardScratch(void* base, int64_t W) : BackwardScratch(Arena(base), W) {}
  int64_t bytes() const { return bytes_; }

 private:
  BackwardScratch(Arena arena, int64_t W)
      : filters(arena, W),
        W(W),
        ld(line_length<T>(W)),
        x(arena.take<T>(kConvChannels * ld)),
        d(arena.take<T>(kConvChannels * ld)),
        next(arena.take<T>(kConvChannels * (W - 1))),
        start(arena.take<T>(kConvChunk + 4 * kLanes<T>)),
        zeros(arena.take<T>(kConvChunk + 4 * kLanes<T>)),
        sums(arena.take<T>(kConvChannels * (W + 1) * kLanes<T>)),
        bytes_(arena.used()) {}
  int64_t bytes_;
};

/// d = dout·silu'(pre) in place, n of a channel whose first input is line[0].
template <class T>
void through_silu(const T* line, const T* weight, T bias, int64_t W, int64_t n, T* d) {
  using V = Native<T>;
  for_vectors<T>(n, [&](int64_t i, auto count) {
    V pre[count];
    for (V& s : pre) s = splat<V>(bias);
    weighted<count, false>(line + i, weight, W, pre);
    for (int k = 0; k < count; ++k) {
      T* const at = d + i + k * kWidth<V>;
      store(at, load<V>(at) * SiluRule{}.curve<VectorMath>(pre[k]).slope);
    }
  });
}

/// dx of n positions, from `start` on.
template <class T, class S>
void spread(const T* d, const T* weight, const T* start, int64_t W, int64_t n, S* grad_x) {
  using V = Native<T>;
  for_vectors<T>(n, [&](int64_t i, auto count) {
    V sum[count];
    for (int k = 0; k < count; ++k) sum[k] = load<V>(start + i + k * kWidth<V>);
    weighted<count, true>(d + i, weight, W, sum);
    for (int k = 0; k < count; ++k)
      store_up_to(grad_x + i + k * kWidth<V>, sum[k], n - i - k * kWidth<V>);
  });
}

/// Adds Σ d_t·line_{t + w} for every w, and Σ d_t after them, lane by lane. What lies past n may be anything.
template <class T>
void add_sums(const T* line, const T* d, int64_t W, int64_t n, T* sums) {
  using V = Native<T>;
  const int64_t whole = n / kWidth<V> * kWidth<V>;
  const IntOf<V> there = lane_index<V>() < static_cast<Element<IntOf<V>>>(n - whole);
  const V last = n > whole ? select(there, load<V>(d + whole), V{}) : V{};
  for (int64_t w = 0; w < W; ++w) {
    V sum = load<V>(sums + w * kWidth<V>);
    for (int64_t i = 0; i < whole; i += kWidth<V>)
      sum = madd(load<V>(d + i), load<V>(line + i + w), sum);
    if (n > whole) sum = madd(last, select(there, load<V>(line + whole + w), V{}), sum);
    store(sums + w * kWidth<V>, sum);
  }
  V sum = load<V>(sums + W * kWidth<V>);
  for (int64_t i = 0; i < whole; i += kWidth<V>) sum = sum + load<V>(d + i);
  store(sums + W * kWidth<V>, sum + last);
}

/// Channels [c, c + channels) of one sequence. Chunks are taken from the last to the first: each d reaches W − 1 inputs back.
template <class S>
class SequenceTask {
  using T = Accumulate<S>;

 public:
  SequenceTask(const CausalConv1dBackwardParams& p, const BackwardScratch<T>& s, int64_t sequence,
               int64_t c, int64_t within, int64_t channels)
      : p_(p),
        s_(s),
        span_(p.parts.sequences[sequence]),
        inputs_(p, sequence, c),
        grad_out_(rows_of<S>(p.grad_out, span_.batch, c, span_.start)),
        grad_state_(rows_of<S>(p.grad_state, sequence, c, 0)),
        sequence_(sequence),
        c_(c),
        channels_(channels),
        weight_(s.filters.weight + within * p.W),
        bias_(s.filters.bias + within),
        sums_(s.sums + within * (p.W + 1) * kLanes<T>) {}

  void run(int64_t begin, int64_t end) {
    const int64_t past = p_.W - 1;
    for (int64_t i = 0; i < channels_ * past; ++i) s_.next[i] = 0;
    // What follows the piece reaches back into it.
    chunks(end, end + past < span_.length ? end + past : span_.length, false);
    chunks(begin, end, true);
    if (begin == 0 && p_.grad_initial_state) write_grad_initial_state();
  }

 private:
  void chunks(int64_t begin, int64_t end, bool own) {
    for (int64_t k = ceil_div(end - begin, kConvChunk) - 1; k >= 0; --k) {
      const int64_t first = begin + k * kConvChunk;
      chunk(first, end - first < kConvChunk ? end - first : kConvChunk, own);
    }
  }

  void chunk(int64_t first, int64_t n, bool own) {
    const int64_t past = p_.W - 1, ld = s_.ld;
    const bool silu = p_.activation == ConvActivation::kSilu, sums = own && p_.sums;
    if (silu || sums) inputs_.stage_with_past(channels_, first, n, s_.x, ld);
    stage_grad_out(first, n);
    for (int64_t c = 0; c < channels_; ++c) {
      const T *const line = s_.x + c * ld, *const weight = weight_ + c * p_.W;
      T *const d = s_.d + c * ld, *const next = s_.next + c * past;
      if (silu && grad_out_.data) through_silu(line, weight, bias_[c], p_.W, n, d);
      if (sums) add_sums(line, d, p_.W, n, sums_ + c * (p_.W + 1) * kLanes<T>);
      for (int64_t i = 0; i < past; ++i) d[n + i] = next[i];
      if (own && p_.grad_x)
        spread(d, weight, grad_state_from(c, first, n), p_.W, n,
               static_cast<S*>(p_.grad_x) + (span_.batch * p_.C + c_ + c) * p_.L + span_.start +
                   first);
      for (int64_t i = 0; i < past; ++i) next[i] = d[i];
    }
  }

  void stage_grad_out(int64_t first, int64_t n) {
    if (grad_out_.data)
      return stage(Rows<S>{grad_out_.data + first * grad_out_.position, grad_out_.channel,
                           grad_out_.position},
                   channels_, n, s_.d, s_.ld);
    for (int64_t c = 0; c < channels_; ++c)
      for (int64_t i = 0; i < n; ++i) s_.d[c * s_.ld + i] = 0;
  }

  /// dstate of the inputs from `first` on.
  const T* grad_state_from(int64_t c, int64_t first, int64_t n) const {
    const int64_t kept = span_.length - (p_.W - 1);  // the first input that the state has
    if (!grad_state_.data || first + n <= kept) return s_.zeros;
    for (int64_t i = 0; i < n; ++i)
      s_.start[i] = first + i < kept ? T(0) : to_accumulate(grad_state_.at(c, first + i - kept));
    return s_.start;
  }

  /// s_.next has the d of the first inputs.
  void write_grad_initial_state() {
    const int64_t past = p_.W - 1;
    S* const to = static_cast<S*>(p_.grad_initial_state) + (sequence_ * p_.C + c_) * past;
    for (int64_t c = 0; c < channels_; ++c)
      for (int64_t j = 0; j < past; ++j) {
        const bool in_state = grad_state_.data && j >= span_.length;
        T sum = in_state ? to_accumulate(grad_state_.at(c, j - span_.length)) : T(0);
        for (int64_t w = 0; w <= j; ++w)
          if (j - w < span_.length)
            sum = madd(weight_[c * p_.W + w], s_.next[c * past + j - w], sum);
        to[c * past + j] = from_accumulate<S>(sum);
      }
  }

  const CausalConv1dBackwardParams& p_;
  const BackwardScratch<T>& s_;
  const Span& span_;
  const Inputs<S> inputs_;
  const Rows<S> grad_out_, grad_state_;
  const int64_t sequence_, c_, channels_;
  const T *const weight_, *const bias_;
  T* const sums_;
};

template <class S>
void backward_task(const CausalConv1dBackwardParams& p, int64_t task, void* memory) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const int64_t blocks = conv_channel_blocks(p), group = task / blocks,
                first = task % blocks * kConvChannels,
                last = p.C - first < kConvChannels ? p.C : first + kConvChannels;
  BackwardScratch<T> s(memory, p.W);
  s.filters.template read<S>(p, first, last - first);
  for (int64_t i = 0; i < kConvChunk + 4 * kLanes<T>; ++i) s.zeros[i] = 0;
  for (int64_t i = 0; i < (last - first) * (p.W + 1); ++i) store(s.sums + i * kWidth<V>, V{});
  const int64_t of_x = channels_at_once(p.x), of_grad = channels_at_once(p.grad_out),
                at_once = of_x > of_grad ? of_x : of_grad;
  for (int64_t i = p.parts.groups[group]; i < p.parts.groups[group + 1]; ++i) {
    const Piece& piece = p.parts.pieces[i];
    for (int64_t c = first; c < last; c += at_once)
      SequenceTask<S>(p, s, piece.sequence, c, c - first, last - c < at_once ? last - c : at_once)
          .run(piece.begin, piece.end);
  }
  if (!p.sums) return;
  T* const sums = static_cast<T*>(p.sums) + (group * p.C + first) * (p.W + 1);
  for (int64_t i = 0; i < (last - first) * (p.W + 1); ++i)
    sums[i] = sum(load<V>(s.sums + i * kWidth<V>));
}

template <class S>
void sums_of_channels(const CausalConv1dBackwardParams& p, int64_t first, int64_t last) {
  using T = Accumulate<S>;
  const int64_t row = p.W + 1;
  for (int64_t c = first; c < last; ++c)
    for (int64_t w = 0; w < row; ++w) {
      T total = 0;
      for (int64_t group = 0; group < p.parts.group_count; ++group)
        total += static_cast<const T*>(p.sums)[(group * p.C + c) * row + w];
      if (w < p.W)
        store_number<S>(p.grad_weight, p.weight.float32, c * p.W + w, total);
      else
        store_number<S>(p.grad_bias, p.bias.float32, c, total);
    }
}

}  // namespace

void causal_conv1d_backward_layout(const CausalConv1dBackwardParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    *bytes = BackwardScratch<Accumulate<decltype(s)>>(nullptr, p.W).bytes();
  });
}

void causal_conv1d_backward(const CausalConv1dBackwardParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { backward_task<decltype(s)>(p, task, scratch); });
}

void causal_conv1d_sums(const CausalConv1dBackwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) { sums_of_channels<decltype(s)>(p, first, last); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
