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

template <class T>
struct RouteScratch {
  T *logits, *scores, *chosen, *grad, *grad_weights;  // rows of E
  Key<T>* keys;
  Key<T>* group_keys;
  int32_t* ids;

  RouteScratch(const RouteParams& p, void* memory) {
    const int64_t row = padded_row(p.E);
    logits = static_cast<T*>(memory);
    scores = logits + row;
    chosen = scores + row;
    // forward
    keys = reinterpret_cast<Key<T>*>(chosen + row);
    group_keys = keys + row;
    // backward
    grad = chosen + row;
    grad_weights = grad + row;
    ids = reinterpret_cast<int32_t*>(grad_weights + row);
  }
};

/// Index of the largest key, the lowest among equals; that key is struck out.
template <class K>
FULGURITE_INLINE int64_t take_largest(K* keys, int64_t padded) {
  using V = Native<K>;
  V best = load<V>(keys), where{};
  V index{};
  for (int lane = 0; lane < kLanes<K>; ++lane) index[lane] = lane;
  const V first = index;
  for (int64_t c = kLanes<K>; c < padded; c += kLanes<K>) {
    const V key = load<V>(keys + c);
    const V better = key > best;
    best = better ? key : best;
    where = better ? V{} + static_cast<K>(c) : where;
  }
  where += first;
  int64_t winner = 0;
  for (int lane = 1; lane < kLanes<K>; ++lane)
    if (best[lane] > best[winner] || (best[lane] == best[winner] && where[lane] < where[winner]))
      winner = lane;
  const int64_t taken = where[winner];
  keys[taken] = sizeof(K) == 8 ? static_cast<K>(INT64_MIN) : static_cast<K>(INT32_MIN);
  return taken;
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
void keep_groups(const RouteParams& p, const T* choice, RouteScratch<T>& w) {
  const int64_t members = p.E / p.n_group, padded = padded_row(p.n_group);
  for (int64_t g = 0; g < padded; ++g)
    w.group_keys[g] = g < p.n_group
                          ? group_key<T>(p, choice + g * members, w.keys + g * members, members)
                          : kOut<T>;
  for (int64_t kept = 0; kept < p.topk_group; ++kept) take_largest(w.group_keys, padded);
  for (int64_t g = 0; g < p.n_group; ++g)
    if (w.group_keys[g] != kOut<T>)
      for (int64_t e = g * members; e < (g + 1) * members; ++e) w.keys[e] = kOut<T>;
}

/// Scores (where there are any) of the row in w.logits.
template <class T>
void score_row(const RouteParams& p, RouteScratch<T>& w) {
  using V = Native<T>;
  if (p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk) return;
  for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
    store(w.scores + c, unary_score(p.score, load<V>(w.logits + c)));
}

template <class T>
void choose(const RouteParams& p, RouteScratch<T>& w, int32_t* ids) {
  using V = Native<T>;
  const T* const bias = static_cast<const T*>(p.bias);
  const T* choice =
      p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk ? w.logits : w.scores;
  if (bias) {
    // w.chosen is free until the weights are made.
    for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
      store(w.chosen + c, load<V>(choice + c) + load<V>(bias + c));
    choice = w.chosen;
  }
  for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
    store(w.keys + c, order_key(load<V>(choice + c)));
  for (int64_t e = p.E; e < padded_row(p.E); ++e) w.keys[e] = kOut<T>;
  if (p.topk_group < p.n_group) keep_groups(p, choice, w);
  for (int64_t j = 0; j < p.K; ++j)
    ids[j] = static_cast<int32_t>(take_largest(w.keys, padded_row(p.E)));
}

FULGURITE_INLINE bool is_expert(const RouteParams& p, int32_t id) { return id >= 0 && id < p.E; }

/// w.chosen = numerators e^(l − max) of the chosen logits (0 for sentinels); returns the maximum.
template <class T>
T chosen_exponentials(const RouteParams& p, RouteScratch<T>& w, const int32_t* ids, bool over_all) {
  using V = Native<T>;
  T highest = -kInfinity<T>;
  if (over_all) {
    highest = row_max(p.E, w.logits);
  } else {
    for (int64_t j = 0; j < p.K; ++j)
      if (is_expert(p, ids[j]) && w.logits[ids[j]] > highest) highest = w.logits[ids[j]];
  }
  for (int64_t first = 0; first < p.K; first += kLanes<T>) {
    V x{};
    for (int64_t lane = 0; lane < kLanes<T> && first + lane < p.K; ++lane)
      x[lane] =
          is_expert(p, ids[first + lane]) ? w.logits[ids[first + lane]] - highest : -kInfinity<T>;
    x = exp(x);
    for (int64_t lane = 0; lane < kLanes<T> && first + lane < p.K; ++lane)
      w.chosen[first + lane] = x[lane];
  }
  return highest;
}

/// w.chosen = the weights before scaling; sentinels have 0.
template <class T>
void unscaled_weights(const RouteParams& p, RouteScratch<T>& w, const int32_t* ids) {
  using V = Native<T>;
  const bool softmax = p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk;
  const bool over_all = p.score == Score::kSoftmax && !p.renormalize;
  double total = 0;
  if (softmax) {
    const T highest = chosen_exponentials(p, w, ids, over_all);
    if (over_all)
      total = row_sum<T>(p.E, [&](int64_t c) { return exp(load<V>(w.logits + c) - highest); });
  } else {
    for (int64_t j = 0; j < p.K; ++j) w.chosen[j] = is_expert(p, ids[j]) ? w.scores[ids[j]] : T(0);
  }
  if (!softmax && !p.renormalize) return;
  if (!over_all)
    for (int64_t j = 0; j < p.K; ++j) total += w.chosen[j];
  if (!softmax) total += p.eps;
  const T divisor = static_cast<T>(total);
  for (int64_t j = 0; j < p.K; ++j)
    w.chosen[j] = is_expert(p, ids[j]) ? w.chosen[j] / divisor : T(0);
}

template <class S>
void route_rows(const RouteParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  RouteScratch<T> w(p, memory);
  for (int64_t t = first; t < last; ++t) {
    int32_t* const ids = p.ids + t * p.K;
    T* const weights = static_cast<T*>(p.weights) + t * p.K;
    if (p.token_mask && !p.token_mask[t * p.token_mask_stride]) {
      for (int64_t j = 0; j < p.K; ++j) {
        ids[j] = static_cast<int32_t>(p.E);
        weights[j] = 0;
      }
      continue;
    }
    load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
    score_row(p, w);
    if (p.forced) {
      for (int64_t j = 0; j < p.K; ++j) ids[j] = p.forced[t * p.K + j];
    } else {
      choose(p, w, ids);
    }
    unscaled_weights(p, w, ids);
    for (int64_t j = 0; j < p.K; ++j) weights[j] = w.chosen[j] * static_cast<T>(p.scale);
  }
}

// ---- backward, with g the gradient of the weights times scale, w the unscaled weights, s the
// scores:
//   softmax over the chosen:   dl_j = w_j (g_j − Σ g w)
//   softmax over all:          dl_e = p_e (G_e − Σ g w)               G_e: g scattered to the experts
//   s/(Σs + eps) = s/D:        dl_j = s'_j (g_j/D − Σ g s/D²)          without renormalize: s'_j g_j

/// Adds the gradient of the chosen logits into `grad`, E zeros.
template <class T>
void grad_chosen(const RouteParams& p, RouteScratch<T>& w, const int32_t* ids, const T* g,
                 T* grad) {
  using V = Native<T>;
  const bool softmax = p.score == Score::kSoftmax || p.score == Score::kSoftmaxTopk;
  unscaled_weights(p, w, ids);
  double dot_sum = 0, total = p.eps;
  for (int64_t j = 0; j < p.K; ++j) {
    if (!is_expert(p, ids[j])) continue;
    dot_sum += static_cast<double>(g[j]) * w.chosen[j];
    if (!softmax) total += w.scores[ids[j]];
  }
  const T dot = static_cast<T>(dot_sum), divisor = static_cast<T>(total);
  for (int64_t j = 0; j < p.K; ++j) {
    const int32_t e = ids[j];
    if (!is_expert(p, e)) continue;
    if (softmax) {
      grad[e] += w.chosen[j] * (g[j] - dot);
      continue;
    }
    const T slope = unary_score_slope(p.score, splat<V>(w.logits[e]), splat<V>(w.scores[e]))[0];
    grad[e] += slope * (p.renormalize ? (g[j] - dot) / divisor : g[j]);
  }
}

template <class T>
void grad_softmax_over_all(const RouteParams& p, RouteScratch<T>& w, const int32_t* ids, const T* g,
                           T* grad) {
  using V = Native<T>;
  const T highest = row_max(p.E, w.logits);
  const T total = row_sum<T>(p.E, [&](int64_t c) {
    const V x = exp(load<V>(w.logits + c) - highest);
    store(w.scores + c, x);
    return x;
  });
  T dot = 0;
  for (int64_t j = 0; j < p.K; ++j)
    if (is_expert(p, ids[j])) {
      grad[ids[j]] += g[j];
      dot += g[j] * (w.scores[ids[j]] / total);
    }
  for (int64_t c = 0; c < padded_row(p.E); c += kLanes<T>)
    store(grad + c, load<V>(w.scores + c) / total * (load<V>(grad + c) - dot));
}

template <class S>
void grad_rows(const RouteParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  RouteScratch<T> w(p, memory);
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
      load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.logits);
      score_row(p, w);
      if (p.score == Score::kSoftmax && !p.renormalize)
        grad_softmax_over_all(p, w, ids, g, grad);
      else
        grad_chosen(p, w, ids, g, grad);
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

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
