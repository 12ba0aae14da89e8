// What expert choice computes for each token: the softmax of its logits, and the gradient of that.
//
//   G_te = e^(l_te − max_e l)/Σ_e          dl_te = G_te (dG_te − Σ_e dG G)
//
// Reads: logits; backward dG and which tokens were taken.
// Writes: G transposed, a row for each expert; backward the gradient of the logits, 0 for tokens that no expert took.
// Task: a range of tokens.
// Order of sums: experts compare these G, so exp and the sum over experts have one order on every instruction set (rows.h).

#include "moe/cpu/kernels/expert_choice.h"
#include "moe/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct ExpertChoiceScratch {
  T *logits, *grad, *scores[kLanes<T>];

  ExpertChoiceScratch(const ExpertChoiceParams& p, void* memory) {
    Arena arena(memory);
    logits = arena.take<T>(padded_row(p.E));
    grad = arena.take<T>(padded_row(p.E));
    for (T*& row : scores) row = arena.take<T>(padded_row(p.E));
  }
};

/// G of token t, 0 in the padding.
template <class S, class T>
void scores_of(const ExpertChoiceParams& p, int64_t t, T* logits, T* scores) {
  load_row<S>(p.logits, t, p.E, -kInfinity<T>, logits);
  T highest;
  const T total = exponentials(p.E, logits, scores, &highest);
  divide_row(p.E, scores, total);
}

/// Columns of tokens [t, t + n) from their rows, in blocks: one number at a time would miss the cache where T is a power of two.
template <class T>
void store_columns(const ExpertChoiceParams& p, int64_t t, int64_t n,
                   const ExpertChoiceScratch<T>& w) {
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  T* const to = static_cast<T*>(p.scores) + t;
  for (int64_t e = 0; e < p.E; e += W) {
    V square[W];
    for (int lane = 0; lane < W; ++lane)
      square[lane] = lane < n ? load<V>(w.scores[lane] + e) : V{};
    transpose<W / 2>(square);
    for (int64_t i = 0; i < W && e + i < p.E; ++i) store_up_to(to + (e + i) * p.T, square[i], n);
  }
}

template <class S>
void forward_rows(const ExpertChoiceParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  const ExpertChoiceScratch<T> w(p, memory);
  for (int64_t t = first; t < last; t += kLanes<T>) {
    const int64_t n = last - t < kLanes<T> ? last - t : kLanes<T>;
    for (int64_t lane = 0; lane < n; ++lane) scores_of<S>(p, t + lane, w.logits, w.scores[lane]);
    store_columns(p, t, n, w);
  }
}

template <class S>
void backward_rows(const ExpertChoiceParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const ExpertChoiceScratch<T> w(p, memory);
  T* const scores = w.scores[0];
  const Matrix grads{p.grad_scores, p.E, 1};
  for (int64_t t = first; t < last; ++t) {
    load_row<T>(grads, t, p.E, T(0), w.grad);
    if (p.taken[t]) {  // else its logits are not looked at: they may be NaN
      scores_of<S>(p, t, w.logits, scores);
      const T mean =
          row_sum<T>(p.E, [&](int64_t c) { return load<V>(w.grad + c) * load<V>(scores + c); });
      for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
        store(w.grad + c, load<V>(scores + c) * (load<V>(w.grad + c) - mean));
    }
    store_row(static_cast<S*>(p.grad_logits) + t * p.E, w.grad, p.E);
  }
}

}  // namespace

void moe_expert_choice(const ExpertChoiceParams& p, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { forward_rows<decltype(s)>(p, first, last, scratch); });
}

void moe_expert_choice_backward(const ExpertChoiceParams& p, int64_t first, int64_t last,
                                void* scratch) {
  with_storage(p.dtype, [&](auto s) { backward_rows<decltype(s)>(p, first, last, scratch); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
