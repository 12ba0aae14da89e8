// What expert choice computes for each token: the softmax of its logits, and the gradient of that.
//
//   G_te = e^(l_te − max_e l)/Σ_e          dl_te = G_te (dG_te − Σ_e dG G)
//
// Experts compare these G: exp and the sum are those of fixed order.

#include "moe/cpu/expert_choice.h"
#include "moe/cpu/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct ExpertChoiceScratch {
  T *logits, *scores, *grad;

  ExpertChoiceScratch(const ExpertChoiceParams& p, void* memory) {
    Arena arena(memory);
    logits = arena.take<T>(padded_row(p.E));
    scores = arena.take<T>(padded_row(p.E));
    grad = arena.take<T>(padded_row(p.E));
  }
};

/// w.scores = G of token t, 0 in the padding.
template <class S, class T>
void scores_of(const ExpertChoiceParams& p, int64_t t, const ExpertChoiceScratch<T>& w) {
  load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
  T highest;
  const T total = exponentials(p.E, w.logits, w.scores, &highest);
  divide_row(p.E, w.scores, total);
}

template <class S>
void forward_rows(const ExpertChoiceParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  const ExpertChoiceScratch<T> w(p, memory);
  T* const to = static_cast<T*>(p.scores);
  for (int64_t t = first; t < last; ++t) {
    scores_of<S>(p, t, w);
    for (int64_t e = 0; e < p.E; ++e) to[e * p.T + t] = w.scores[e];
  }
}

template <class S>
void backward_rows(const ExpertChoiceParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const ExpertChoiceScratch<T> w(p, memory);
  const Matrix grads{p.grad_scores, p.E, 1};
  for (int64_t t = first; t < last; ++t) {
    load_row<T>(grads, t, p.E, T(0), w.grad);
    if (p.taken[t]) {  // else its logits are not looked at: they may be NaN
      scores_of<S>(p, t, w);
      const T mean =
          row_sum<T>(p.E, [&](int64_t c) { return load<V>(w.grad + c) * load<V>(w.scores + c); });
      for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
        store(w.grad + c, load<V>(w.scores + c) * (load<V>(w.grad + c) - mean));
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
