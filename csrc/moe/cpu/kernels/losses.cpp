// Router losses and the selection bias.
//
//   balance   L = Σ_t Σ_e C_e P_te     P: softmax of the row, or s/(Σs + eps);  C: E·f_e/T' or what the kind makes of it
//     softmax   dl_e = p_e (C_e − Σ C p)          else, D = Σs + eps:   dl_e = s'_e (C_e − Σ C P)/D
//   z-loss    L = 1/T' Σ_t lse_t²               dl_e = 2/T' · lse · p_e
//
// over the T' tokens that the mask keeps. A row that it hides is not looked at.
//
// Reads: logits, token_mask, coefficients; update_bias the counts.
// Writes: a partial sum for each task, or the gradient of the logits; update_bias the bias.
// Task: a range of tokens; update_bias is one.
// Order of sums: a row's by rows.h, the same on every instruction set; rows in float64, in order; the caller adds the tasks' in order.

#include "moe/cpu/kernels/rows.h"
#include "moe/rules/balance.h"
#include "moe/rules/scores.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct LossScratch {
  T *logits, *scores, *unary;  // P, and s where P is not a softmax

  LossScratch(const LossParams& p, void* memory) {
    logits = static_cast<T*>(memory);
    scores = logits + padded_row(p.E);
    unary = scores + padded_row(p.E);
  }
};

/// Calls row(t) for the tokens of [first, last) that the mask keeps, their logits loaded.
template <class S, class T, class Row>
FULGURITE_INLINE void for_kept_rows(const LossParams& p, int64_t first, int64_t last,
                                    LossScratch<T>& w, const Row& row) {
  for (int64_t t = first; t < last; ++t) {
    if (p.token_mask.hides(t)) continue;
    load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
    row(t);
  }
}

/// w.scores = P of the row in w.logits; returns D (1 for softmax). The padding has P = 0.
template <class T>
T normalised_scores(const LossParams& p, LossScratch<T>& w) {
  using V = Native<T>;
  const Score score = p.score;  // a copy: what is stored below could alias the problem
  const bool softmax = is_softmax(score);
  T total, highest;
  if (softmax) {
    total = exponentials(p.E, w.logits, w.scores, &highest);
  } else {
    // The padding's logits are −inf: its scores are 0.
    total = static_cast<T>(p.eps) + row_sum<T>(p.E, [&](int64_t c) {
              const V s = own_score<VectorMath>(score, load<V>(w.logits + c));
              store(w.unary + c, s);
              store(w.scores + c, s);
              return s;
            });
  }
  divide_row(p.E, w.scores, total);
  return softmax ? T(1) : total;
}

template <class T>
FULGURITE_INLINE const T* coefficients_of(const LossParams& p, int64_t t) {
  return static_cast<const T*>(p.coefficients) + (p.sequence ? p.sequence[t] * padded_row(p.E) : 0);
}

template <class T>
T weighted_sum(const LossParams& p, const T* coefficients, const LossScratch<T>& w) {
  using V = Native<T>;
  return row_sum<T>(p.E,
                    [&](int64_t c) { return load<V>(coefficients + c) * load<V>(w.scores + c); });
}

/// The task's part: Σ value(t, w) over the rows that count.
template <class S, class Value>
void sum_rows(const LossParams& p, int64_t part, int64_t first, int64_t last, void* memory,
              const Value& value) {
  LossScratch<Accumulate<S>> w(p, memory);
  double total = 0;
  for_kept_rows<S>(p, first, last, w, [&](int64_t t) { total += value(t, w); });
  p.partial[part] = total;
}

template <class S>
void balance_forward(const LossParams& p, int64_t part, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  sum_rows<S>(p, part, first, last, memory, [&](int64_t t, LossScratch<T>& w) {
    normalised_scores(p, w);
    return weighted_sum(p, coefficients_of<T>(p, t), w);
  });
}

template <class S>
void score_sums(const LossParams& p, int64_t part, int64_t first, int64_t last, void* memory) {
  LossScratch<Accumulate<S>> w(p, memory);
  double* const sums = p.partial + part * p.E;
  for (int64_t e = 0; e < p.E; ++e) sums[e] = 0;
  for_kept_rows<S>(p, first, last, w, [&](int64_t) {
    normalised_scores(p, w);
    for (int64_t e = 0; e < p.E; ++e) sums[e] += w.scores[e];
  });
}

/// One row of gradients, zeros for a hidden token.
template <class S, class Row>
void grad_rows(const LossParams& p, int64_t first, int64_t last, void* memory, const Row& row) {
  using T = Accumulate<S>;
  using V = Native<T>;
  LossScratch<T> w(p, memory);
  for (int64_t t = first; t < last; ++t) {
    if (p.token_mask.hides(t)) {
      for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>) store(w.logits + c, V{});
    } else {
      load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
      row(t, w);
    }
    store_row(static_cast<S*>(p.grad_logits) + t * p.E, w.logits, p.E);
  }
}

template <class S>
void balance_backward(const LossParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  using V = Native<T>;
  const Score score = p.score;
  const bool softmax = is_softmax(score);
  const T grad = static_cast<T>(p.grad);
  grad_rows<S>(p, first, last, memory, [&](int64_t t, LossScratch<T>& w) {
    const T* const coefficients = coefficients_of<T>(p, t);
    const T total = normalised_scores(p, w);
    const T mean = weighted_sum(p, coefficients, w);
    for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>) {
      const V slope = softmax ? load<V>(w.scores + c)
                              : own_score_slope<VectorMath>(score, load<V>(w.logits + c),
                                                            load<V>(w.unary + c)) /
                                    total;
      store(w.logits + c, grad * slope * (load<V>(coefficients + c) - mean));
    }
  });
}

/// w.scores = e^(l − max l) of the row in w.logits, their sum, and the row's lse.
template <class T>
struct LogSumExp {
  T sum;
  double lse;

  LogSumExp(const LossParams& p, LossScratch<T>& w) {
    T highest;
    sum = exponentials(p.E, w.logits, w.scores, &highest);
    lse = highest + __builtin_log(static_cast<double>(sum));
  }
};

template <class S>
void z_loss_forward(const LossParams& p, int64_t part, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  sum_rows<S>(p, part, first, last, memory, [&](int64_t, LossScratch<T>& w) {
    const double lse = LogSumExp<T>(p, w).lse;
    return lse * lse;
  });
}

template <class S>
void z_loss_backward(const LossParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  using V = Native<T>;
  grad_rows<S>(p, first, last, memory, [&](int64_t, LossScratch<T>& w) {
    const LogSumExp<T> row(p, w);
    const T factor = static_cast<T>(2 * p.grad * row.lse) / row.sum;
    for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
      store(w.logits + c, load<V>(w.scores + c) * factor);
  });
}

/// Of the updates of moe/rules/balance.h; center: minus their mean.
template <class S>
void update_bias(const UpdateBiasProblem& p) {
  using T = Accumulate<S>;
  int64_t total = 0;
  for (int64_t e = 0; e < p.E; ++e) total += p.counts[e];
  if (total == 0) return;
  const auto update = [&](int64_t e) {
    return bias_update(p.rule, p.rate, p.E, p.counts[e], total);
  };
  double mean = 0;
  if (p.center) {
    for (int64_t e = 0; e < p.E; ++e) mean += update(e);
    mean /= static_cast<double>(p.E);
  }
  S* const bias = static_cast<S*>(p.bias);
  for (int64_t e = 0; e < p.E; ++e) {
    S& value = bias[e * p.bias_stride];
    value = from_accumulate<S>(to_accumulate(value) + static_cast<T>(update(e) - mean));
  }
}

}  // namespace

void moe_balance_loss(const LossParams& p, int64_t part, int64_t first, int64_t last,
                      void* scratch) {
  with_storage(p.dtype,
               [&](auto s) { balance_forward<decltype(s)>(p, part, first, last, scratch); });
}

void moe_score_sums(const LossParams& p, int64_t part, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { score_sums<decltype(s)>(p, part, first, last, scratch); });
}

void moe_balance_loss_backward(const LossParams& p, int64_t, int64_t first, int64_t last,
                               void* scratch) {
  with_storage(p.dtype, [&](auto s) { balance_backward<decltype(s)>(p, first, last, scratch); });
}

void moe_z_loss(const LossParams& p, int64_t part, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype,
               [&](auto s) { z_loss_forward<decltype(s)>(p, part, first, last, scratch); });
}

void moe_z_loss_backward(const LossParams& p, int64_t, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { z_loss_backward<decltype(s)>(p, first, last, scratch); });
}

void moe_update_bias(const UpdateBiasProblem& p) {
  with_storage(p.dtype, [&](auto s) { update_bias<decltype(s)>(p); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
