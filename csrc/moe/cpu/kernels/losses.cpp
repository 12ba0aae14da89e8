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

FULGURITE_INLINE bool hidden(const LossParams& p, int64_t t) {
  return p.token_mask && !p.token_mask[t * p.token_mask_stride];
}

/// w.scores = P of the row in w.logits; returns D (1 for softmax). The padding has P = 0.
template <class T>
T normalised_scores(const LossParams& p, LossScratch<T>& w) {
  using V = Native<T>;
  const bool softmax = p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk;
  T total, highest;
  if (softmax) {
    total = exponentials(p.E, w.logits, w.scores, &highest);
  } else {
    // The padding's logits are −inf: its scores are 0.
    total = static_cast<T>(p.eps) + row_sum<T>(p.E, [&](int64_t c) {
              const V s = unary_score(p.score, load<V>(w.logits + c));
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

template <class S>
void balance_forward(const LossParams& p, int64_t part, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  LossScratch<T> w(p, memory);
  double total = 0;
  for (int64_t t = first; t < last; ++t) {
    if (hidden(p, t)) continue;
    load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
    normalised_scores(p, w);
    total += weighted_sum(p, coefficients_of<T>(p, t), w);
  }
  p.partial[part] = total;
}

template <class S>
void score_sums(const LossParams& p, int64_t part, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  LossScratch<T> w(p, memory);
  double* const sums = p.partial + part * p.E;
  for (int64_t e = 0; e < p.E; ++e) sums[e] = 0;
  for (int64_t t = first; t < last; ++t) {
    if (hidden(p, t)) continue;
    load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
    normalised_scores(p, w);
    for (int64_t e = 0; e < p.E; ++e) sums[e] += w.scores[e];
  }
}

/// One row of gradients, zeros for a hidden token.
template <class S, class Row>
void grad_rows(const LossParams& p, int64_t first, int64_t last, void* memory, const Row& row) {
  using T = Accumulate<S>;
  using V = Native<T>;
  LossScratch<T> w(p, memory);
  for (int64_t t = first; t < last; ++t) {
    if (hidden(p, t)) {
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
  const bool softmax = p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk;
  const T grad = static_cast<T>(p.grad);
  grad_rows<S>(p, first, last, memory, [&](int64_t t, LossScratch<T>& w) {
    const T* const coefficients = coefficients_of<T>(p, t);
    const T total = normalised_scores(p, w);
    const T mean = weighted_sum(p, coefficients, w);
    for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>) {
      const V slope =
          softmax ? load<V>(w.scores + c)
                  : unary_score_slope(p.score, load<V>(w.logits + c), load<V>(w.unary + c)) / total;
      store(w.logits + c, grad * slope * (load<V>(coefficients + c) - mean));
    }
  });
}

template <class S>
void z_loss_forward(const LossParams& p, int64_t part, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  LossScratch<T> w(p, memory);
  double total = 0;
  for (int64_t t = first; t < last; ++t) {
    if (hidden(p, t)) continue;
    load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
    T highest;
    const T sum = exponentials(p.E, w.logits, w.scores, &highest);
    const double lse = highest + __builtin_log(static_cast<double>(sum));
    total += lse * lse;
  }
  p.partial[part] = total;
}

template <class S>
void z_loss_backward(const LossParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  using V = Native<T>;
  grad_rows<S>(p, first, last, memory, [&](int64_t, LossScratch<T>& w) {
    T highest;
    const T sum = exponentials(p.E, w.logits, w.scores, &highest);
    const T factor =
        static_cast<T>(2 * p.grad * (highest + __builtin_log(static_cast<double>(sum)))) / sum;
    for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
      store(w.logits + c, load<V>(w.scores + c) * factor);
  });
}

/// sign:          update = rate · sign(mean − count)
/// proportional:  update = rate · (mean − count)/mean         center: minus the mean of the updates
/// As E·(mean − count) is an integer, the sign is exact.
template <class S>
void update_bias(const UpdateBiasParams& p) {
  using T = Accumulate<S>;
  int64_t total = 0;
  for (int64_t e = 0; e < p.E; ++e) total += p.counts[e];
  if (total == 0) return;
  const auto update = [&](int64_t e) {
    const int64_t lack = total - p.E * p.counts[e];
    if (p.proportional) return p.rate * (static_cast<double>(lack) / static_cast<double>(total));
    return lack > 0 ? p.rate : lack < 0 ? -p.rate : 0.0;
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

void moe_update_bias(const UpdateBiasParams& p) {
  with_storage(p.dtype, [&](auto s) { update_bias<decltype(s)>(p); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
