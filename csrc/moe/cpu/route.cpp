// Routing: which K experts a token goes to, and with what weights.
//
//   choice c = logits (softmax kinds)  or  score(logits) + bias
//   ids      = the K largest c, falling; ties to the lowest index, NaN below −inf, experts outside the kept groups never
//   weights  = scale · { softmax over the chosen logits             softmax_topk, or softmax with renormalize
//                      { softmax over all logits, at the chosen     softmax
//                      { s_j / (Σ_chosen s + eps)                   sigmoid, sqrtsoftplus with renormalize
//                      { s_j                                        without
//
// The choice compares integers whose order is that of the numbers, so that every machine decides
// alike.

#include "moe/cpu/largest.h"
#include "moe/cpu/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
using Key = Element<IntOf<Native<T>>>;
template <class T>
inline constexpr Key<T> kOut = sizeof(T) == 8 ? static_cast<Key<T>>(INT64_MIN)
                                              : static_cast<Key<T>>(INT32_MIN);  // taken or masked
template <class T>
inline constexpr Key<T> kNan = kOut<T> + 1;

/// Integers in the order of the floats: −0 equals 0, NaN lies below −inf.
template <class V>
FULGURITE_INLINE IntOf<V> order_key(V x) {
  using T = Element<V>;
  using I = IntOf<V>;
  const I bits = bit_cast<I>(x == T(0) ? V{} : x);
  const I key = bits < 0 ? bits ^ ~kOut<T> : bits;
  return x == x ? key : I{} + kNan<T>;
}

/// What one token needs, in rows of E.
template <class T>
struct RouteRow {
  T *logits, *scores;
  Key<T>* keys;
};

template <class T>
struct RouteScratch {
  using Keys = Native<Key<T>>;
  static constexpr int kTokens = kWidth<Keys>;  // chosen for at a time
  RouteRow<T> rows[kTokens];
  T *chosen, *grad, *grad_weights;
  Key<T>* group_keys;
  int32_t* ids;
  Keys *top, *best;  // of the choice: K vectors
  int64_t bytes;

  RouteScratch(const RouteParams& p, void* memory) {
    const int64_t row = padded_row(p.E);
    Arena arena(memory);
    Key<T>* const keys = arena.take<Key<T>>(kTokens * row);
    for (int lane = 0; lane < kTokens; ++lane)
      rows[lane] = {arena.take<T>(row), arena.take<T>(row), keys + lane * row};
    chosen = arena.take<T>(row);
    group_keys = arena.take<Key<T>>(row);
    grad = arena.take<T>(row);
    grad_weights = arena.take<T>(row);
    ids = arena.take<int32_t>(row);
    top = arena.take<Keys>(p.K);
    best = arena.take<Keys>(p.K);
    bytes = arena.used();
  }
};

/// Index of the largest key, the lowest among equals; that key is struck out.
template <class K>
FULGURITE_INLINE int64_t take_largest(K* keys, int64_t n, K out) {
  int64_t winner = 0;
  for (int64_t g = 1; g < n; ++g)
    if (keys[g] > keys[winner]) winner = g;
  keys[winner] = out;
  return winner;
}

/// The key of one group: of its largest choice score, or of the sum of its two largest.
template <class T>
Key<T> group_key(const RouteParams& p, const T* choice, const Key<T>* keys, int64_t members) {
  int64_t best = 0, second = -1;
  for (int64_t e = 1; e < members; ++e) {
    if (keys[e] > keys[best]) {
      second = best;
      best = e;
    } else if (second < 0 || keys[e] > keys[second]) {
      second = e;
    }
  }
  const T score = p.group_sum && second >= 0 ? choice[best] + choice[second] : choice[best];
  return order_key(splat<Native<T>>(score))[0];
}

/// Strikes out the experts of all but the best groups.
template <class T>
void keep_groups(const RouteParams& p, const T* choice, Key<T>* keys, Key<T>* group_keys) {
  const int64_t members = p.E / p.n_group;
  for (int64_t g = 0; g < p.n_group; ++g)
    group_keys[g] = group_key<T>(p, choice + g * members, keys + g * members, members);
  for (int64_t kept = 0; kept < p.topk_group; ++kept) take_largest(group_keys, p.n_group, kOut<T>);
  for (int64_t g = 0; g < p.n_group; ++g)
    if (group_keys[g] != kOut<T>)
      for (int64_t e = g * members; e < (g + 1) * members; ++e) keys[e] = kOut<T>;
}

/// Scores (where there are any) of a row of logits.
template <class T>
void score_row(const RouteParams& p, const RouteRow<T>& row) {
  using V = Native<T>;
  if (p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk) return;
  for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
    store(row.scores + c, unary_score(p.score, load<V>(row.logits + c)));
}

/// The keys of a row's choice scores, kOut where an expert cannot be chosen.
template <class T>
void key_row(const RouteParams& p, const RouteRow<T>& row, RouteScratch<T>& w) {
  using V = Native<T>;
  const T* const bias = static_cast<const T*>(p.bias);
  const T* choice =
      p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk ? row.logits : row.scores;
  if (bias) {
    // w.chosen is free until the weights are made.
    for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
      store(w.chosen + c, load<V>(choice + c) + load<V>(bias + c));
    choice = w.chosen;
  }
  for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
    store(row.keys + c, order_key(load<V>(choice + c)));
  for (int64_t e = p.E; e < padded_row(p.E); ++e) row.keys[e] = kOut<T>;
  if (p.topk_group < p.n_group) keep_groups(p, choice, row.keys, w.group_keys);
}

FULGURITE_INLINE bool is_expert(const RouteParams& p, int32_t id) { return id >= 0 && id < p.E; }

/// chosen = numerators e^(l − max) of the chosen logits (0 for sentinels); returns the maximum.
template <class T>
T chosen_exponentials(const RouteParams& p, const RouteRow<T>& row, T* chosen, const int32_t* ids,
                      bool over_all) {
  using V = Native<T>;
  T highest = -kInfinity<T>;
  if (over_all) {
    highest = row_max(p.E, row.logits);
  } else {
    for (int64_t j = 0; j < p.K; ++j)
      if (is_expert(p, ids[j]) && row.logits[ids[j]] > highest) highest = row.logits[ids[j]];
  }
  for (int64_t j = 0; j < p.K; ++j)
    chosen[j] = is_expert(p, ids[j]) ? row.logits[ids[j]] - highest : -kInfinity<T>;
  for (int64_t j = p.K; j % kLanes<T> != 0; ++j) chosen[j] = 0;
  for (int64_t j = 0; j < p.K; j += kLanes<T>) store(chosen + j, exp(load<V>(chosen + j)));
  return highest;
}

/// chosen = the weights before scaling; sentinels have 0.
template <class T>
void unscaled_weights(const RouteParams& p, const RouteRow<T>& row, T* chosen, const int32_t* ids) {
  using V = Native<T>;
  const bool softmax = p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk;
  const bool over_all = p.score == Score::kSoftmax && !p.renormalize;
  double total = 0;
  if (softmax) {
    const T highest = chosen_exponentials(p, row, chosen, ids, over_all);
    if (over_all)
      total = row_sum<T>(p.E, [&](int64_t c) { return exp(load<V>(row.logits + c) - highest); });
  } else {
    for (int64_t j = 0; j < p.K; ++j) chosen[j] = is_expert(p, ids[j]) ? row.scores[ids[j]] : T(0);
  }
  if (!softmax && !p.renormalize) return;
  if (!over_all)
    for (int64_t j = 0; j < p.K; ++j) total += chosen[j];
  if (!softmax) total += p.eps;
  const T divisor = static_cast<T>(total);
  for (int64_t j = 0; j < p.K; ++j) chosen[j] = is_expert(p, ids[j]) ? chosen[j] / divisor : T(0);
}

FULGURITE_INLINE bool is_masked(const RouteParams& p, int64_t t) {
  return p.token_mask && !p.token_mask[t * p.token_mask_stride];
}

/// Experts of tokens [t, t + n), n at most one for each lane; their rows hold logits and scores.
template <class T>
void choose(const RouteParams& p, int64_t t, int64_t n, RouteScratch<T>& w) {
  using Keys = Native<Key<T>>;
  for (int64_t lane = 0; lane < RouteScratch<T>::kTokens; ++lane) {
    if (lane < n && !is_masked(p, t + lane)) {
      key_row(p, w.rows[lane], w);
    } else {
      for (int64_t e = 0; e < padded_row(p.E); ++e) w.rows[lane].keys[e] = kOut<T>;
    }
  }
  largest<Keys>(w.rows[0].keys, padded_row(p.E), p.E, p.K, splat<Keys>(kOut<T>), w.top, w.best);
  const Key<T>* const best = reinterpret_cast<const Key<T>*>(w.best);
  for (int64_t lane = 0; lane < n; ++lane)
    for (int64_t j = 0; j < p.K; ++j)
      p.ids[(t + lane) * p.K + j] = static_cast<int32_t>(best[j * kWidth<Keys> + lane]);
}

template <class T>
void weigh(const RouteParams& p, int64_t t, const RouteRow<T>& row, T* chosen) {
  int32_t* const ids = p.ids + t * p.K;
  T* const weights = static_cast<T*>(p.weights) + t * p.K;
  if (is_masked(p, t)) {
    for (int64_t j = 0; j < p.K; ++j) {
      ids[j] = static_cast<int32_t>(p.E);
      weights[j] = 0;
    }
    return;
  }
  if (p.forced)
    for (int64_t j = 0; j < p.K; ++j) ids[j] = p.forced[t * p.K + j];
  unscaled_weights(p, row, chosen, ids);
  for (int64_t j = 0; j < p.K; ++j) weights[j] = chosen[j] * static_cast<T>(p.scale);
}

template <class S>
void route_rows(const RouteParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  RouteScratch<T> w(p, memory);
  constexpr int64_t kTokens = RouteScratch<T>::kTokens;
  for (int64_t t = first; t < last; t += kTokens) {
    const int64_t n = last - t < kTokens ? last - t : kTokens;
    for (int64_t lane = 0; lane < n; ++lane) {
      if (is_masked(p, t + lane)) continue;
      load_row<S>(p.logits, t + lane, p.E, -kInfinity<T>, w.rows[lane].logits);
      score_row(p, w.rows[lane]);
    }
    if (!p.forced) choose(p, t, n, w);
    for (int64_t lane = 0; lane < n; ++lane) weigh(p, t + lane, w.rows[lane], w.chosen);
  }
}

// ---- backward, with g the gradient of the weights times scale, w the unscaled weights, s the
// scores:
//   softmax over the chosen:   dl_j = w_j (g_j − Σ g w)
//   softmax over all:          dl_e = p_e (G_e − Σ g w)               G_e: g scattered to the experts
//   s/(Σs + eps) = s/D:        dl_j = s'_j (g_j/D − Σ g s/D²)          without renormalize: s'_j g_j

/// Adds the gradient of the chosen logits into `grad`, E zeros.
template <class T>
void grad_chosen(const RouteParams& p, const RouteRow<T>& row, T* chosen, const int32_t* ids,
                 const T* g, T* grad) {
  using V = Native<T>;
  const bool softmax = p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk;
  unscaled_weights(p, row, chosen, ids);
  double dot_sum = 0, total = p.eps;
  for (int64_t j = 0; j < p.K; ++j) {
    if (!is_expert(p, ids[j])) continue;
    dot_sum += static_cast<double>(g[j]) * chosen[j];
    if (!softmax) total += row.scores[ids[j]];
  }
  const T dot = static_cast<T>(dot_sum), divisor = static_cast<T>(total);
  for (int64_t j = 0; j < p.K; ++j) {
    const int32_t e = ids[j];
    if (!is_expert(p, e)) continue;
    if (softmax) {
      grad[e] += chosen[j] * (g[j] - dot);
      continue;
    }
    const T slope = unary_score_slope(p.score, splat<V>(row.logits[e]), splat<V>(row.scores[e]))[0];
    grad[e] += slope * (p.renormalize ? (g[j] - dot) / divisor : g[j]);
  }
}

template <class T>
void grad_softmax_over_all(const RouteParams& p, const RouteRow<T>& row, const int32_t* ids,
                           const T* g, T* grad) {
  using V = Native<T>;
  T highest;
  const T total = exponentials(p.E, row.logits, row.scores, &highest);
  T dot = 0;
  for (int64_t j = 0; j < p.K; ++j)
    if (is_expert(p, ids[j])) {
      grad[ids[j]] += g[j];
      dot += g[j] * (row.scores[ids[j]] / total);
    }
  for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
    store(grad + c, load<V>(row.scores + c) / total * (load<V>(grad + c) - dot));
}

template <class S>
void grad_rows(const RouteParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  RouteScratch<T> w(p, memory);
  const RouteRow<T>& row = w.rows[0];
  int32_t* const ids = w.ids;
  T *const grad = w.grad, *const g = w.grad_weights;
  for (int64_t t = first; t < last; ++t) {
    bool any = false;
    for (int64_t j = 0; j < p.K; ++j) {
      ids[j] = static_cast<const int32_t*>(
          p.chosen.data)[t * p.chosen.row_stride + j * p.chosen.column_stride];
      g[j] = static_cast<const T*>(p.grad_weights.data)[t * p.grad_weights.row_stride +
                                                        j * p.grad_weights.column_stride] *
             static_cast<T>(p.scale);
      any |= is_expert(p, ids[j]);
    }
    for (int64_t c = 0; c < padded_row(p.E); ++c) grad[c] = 0;
    if (any) {  // a masked token's logits are not looked at: they may be NaN
      load_row<S>(p.logits, t, p.E, -kInfinity<T>, row.logits);
      score_row(p, row);
      if (p.score == Score::kSoftmax && !p.renormalize)
        grad_softmax_over_all(p, row, ids, g, grad);
      else
        grad_chosen(p, row, w.chosen, ids, g, grad);
    }
    store_row(static_cast<S*>(p.grad_logits) + t * p.E, grad, p.E);
  }
}

}  // namespace

void moe_route(const RouteParams& p, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { route_rows<decltype(s)>(p, first, last, scratch); });
}

void moe_route_backward(const RouteParams& p, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_rows<decltype(s)>(p, first, last, scratch); });
}

void moe_route_layout(const RouteParams& p, int64_t* scratch_bytes) {
  with_storage(p.dtype, [&](auto s) {
    RouteScratch<Accumulate<decltype(s)>> measure(p, nullptr);
    *scratch_bytes = measure.bytes;
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
