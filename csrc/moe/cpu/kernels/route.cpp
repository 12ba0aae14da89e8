// Routing: which K experts a token goes to, and with what weights.
//
//   choice c = logits (softmax kinds)  or  score(logits) + bias
//   ids      = the K largest c, falling; ties to the lowest index, NaN below −inf, experts outside the kept groups never
//   weights  of these                                               moe/rules/route_weights.h
//
// Reads: logits, bias, token_mask, forced ids; backward the ids that were chosen and the gradient of the weights.
// Writes: weights, ids, counts; backward the gradient of the logits.
// Task: a range of tokens, as many at a time as a vector has lanes. Counts are integers that every task adds to.
// Order of sums: over all experts by rows.h, over the chosen in their order; the same on every instruction set, so decisions agree.

#include "moe/cpu/kernels/largest_packed.h"
#include "moe/cpu/kernels/route_groups.h"
#include "moe/cpu/kernels/rows.h"
#include "moe/rules/route_weights.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct RouteScratch {
  using V = Native<T>;
  using I = IntOf<V>;
  static constexpr int64_t kTokens = kLanes<T>;  // at a time
  T* rows[kTokens];                              // logits; of the backward, the first
  Chosen<V> chosen;
  I *keys, *top;  // of the choice: E and K vectors
  GroupLists<V> groups;
  int64_t* counts;   // of the task
  T *scores, *grad;  // backward
  int64_t bytes;

  RouteScratch(const RouteParams& p, void* memory) {
    const int64_t row = padded_row(p.E);
    Arena arena(memory);
    for (T*& logits : rows) logits = arena.take<T>(row);
    chosen.ids = arena.take<I>(p.K);
    for (V** vectors : {&chosen.logits, &chosen.scores, &chosen.weights, &chosen.grads})
      *vectors = arena.take<V>(p.K);
    keys = arena.take<I>(row);
    top = arena.take<I>(p.K);
    for (I** vectors : {&groups.keys, &groups.top, &groups.at}) *vectors = arena.take<I>(p.n_group);
    counts = arena.take<int64_t>(p.E);
    scores = arena.take<T>(row);
    grad = arena.take<T>(row);
    bytes = arena.used();
  }

  /// How many of the tokens [t, last) are worked on together.
  static int64_t tokens_from(int64_t t, int64_t last) {
    return last - t < kTokens ? last - t : kTokens;
  }
};

/// The rules of moe/rules/route_weights.h. Not inlined: all storage types run the same code.
template <class V>
__attribute__((noinline)) void weigh(const RouteProblem& p, const Chosen<V>& c) {
  weigh_chosen<VectorMath>(p, c);
}
template <class V>
__attribute__((noinline)) void grad(const RouteProblem& p, const Chosen<V>& c) {
  grad_chosen<VectorMath>(p, c);
}

// ---- the choice

template <Score kScore>
using ScoreConstant = std::integral_constant<Score, kScore>;

/// w.keys: what the tokens of w.rows choose by, `score` of the logits, transposed. Returns the bits of those numbers, joined by or.
template <class T, class ScoreOf>
FULGURITE_INLINE IntOf<Native<T>> key_columns(const RouteParams& p, const RouteScratch<T>& w,
                                              const ScoreOf& score) {
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  IntOf<V> bits{};
  for (int64_t e = 0; e < padded_row(p.E); e += W) {
    const V bias = p.bias ? load<V>(static_cast<const T*>(p.bias) + e) : V{};
    IntOf<V> square[W];
    for (int lane = 0; lane < W; ++lane) {
      const V number = score(load<V>(w.rows[lane] + e)) + bias;
      square[lane] = order_key(number);
      bits |= bit_cast<IntOf<V>>(number);
    }
    transpose<W / 2>(square);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) w.keys[e + i] = square[i];
  }
  return bits;
}

/// Runs visitor(score) with the score as a constant; the softmax kinds have the same order.
template <class Visitor>
FULGURITE_INLINE auto with_score(Score score, const Visitor& visitor) {
  switch (score) {
    case Score::kSoftmax:
    case Score::kSoftmaxTopk: return visitor(ScoreConstant<Score::kSoftmax>{});
    case Score::kSigmoid: return visitor(ScoreConstant<Score::kSigmoid>{});
    case Score::kSqrtSoftplus: return visitor(ScoreConstant<Score::kSqrtSoftplus>{});
  }
  __builtin_unreachable();
}

/// w.chosen.ids of the tokens whose logits w.rows hold.
template <class T>
void choose(const RouteParams& p, const RouteScratch<T>& w) {
  using V = Native<T>;
  using I = IntOf<V>;
  const auto keys_by = [&](auto score) {
    return key_columns(p, w, [=](V x) { return own_score<VectorMath>(score, x); });
  };
  const I bits = with_score(p.score, keys_by);
  if (p.topk_group < p.n_group) keep_groups<V>(p, w.keys, w.groups);
  const I lowest = splat<I>(kOut<T>);
  if (!largest_packed(w.keys, p.E, p.K, lowest, bits, w.top, w.chosen.ids))
    largest(w.keys, p.E, p.K, lowest, w.top, w.chosen.ids);
}

// ---- forward

/// Logits of tokens [t, t + n); of lanes without a token, and of masked ones, zeros.
template <class S, class T>
void load_rows(const RouteParams& p, int64_t t, int64_t n, const RouteScratch<T>& w) {
  for (int64_t lane = 0; lane < w.kTokens; ++lane) {
    if (lane < n && !p.token_mask.hides(t + lane)) {
      load_row<S>(p.logits, t + lane, p.E, -kInfinity<T>, w.rows[lane]);
    } else {
      for (int64_t e = 0; e < padded_row(p.E); ++e) w.rows[lane][e] = 0;
    }
  }
}

/// Final ids of tokens [t, t + n), counted, and their logits.
template <class T>
void settle_ids(const RouteParams& p, int64_t t, int64_t n, RouteScratch<T>& w) {
  Chosen<Native<T>>& c = w.chosen;
  for (int64_t lane = 0; lane < n; ++lane) {
    const bool masked = p.token_mask.hides(t + lane);
    for (int64_t j = 0; j < p.K; ++j) {
      const int64_t given = p.forced ? p.forced[(t + lane) * p.K + j] : c.ids[j][lane];
      const int64_t id = masked ? p.E : given;
      p.ids[(t + lane) * p.K + j] = static_cast<int32_t>(id);
      c.ids[j][lane] = static_cast<Integer<T>>(id);
      const bool real = is_expert(p, id);
      c.logits[j][lane] = real ? w.rows[lane][id] : -kInfinity<T>;
      if (real) ++w.counts[id];
    }
    if (!is_over_all(p)) continue;
    const T* const row = w.rows[lane];
    const T highest = row_max(p.E, row);
    c.highest[lane] = highest;
    c.total[lane] =
        row_sum<T>(p.E, [&](int64_t e) { return exp(load<Native<T>>(row + e) - highest); });
  }
}

template <class S>
void route_rows(const RouteParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  RouteScratch<T> w(p, memory);
  T* const weights = static_cast<T*>(p.weights);
  for (int64_t e = 0; e < p.E; ++e) w.counts[e] = 0;
  for (int64_t t = first; t < last; t += w.kTokens) {
    const int64_t n = w.tokens_from(t, last);
    load_rows<S>(p, t, n, w);
    if (!p.forced) choose(p, w);
    settle_ids(p, t, n, w);
    weigh(p, w.chosen);
    for (int64_t lane = 0; lane < n; ++lane)
      for (int64_t j = 0; j < p.K; ++j)
        weights[(t + lane) * p.K + j] = w.chosen.weights[j][lane] * static_cast<T>(p.scale);
  }
  for (int64_t e = 0; e < p.E; ++e)
    if (w.counts[e]) __atomic_fetch_add(p.counts + e, w.counts[e], __ATOMIC_RELAXED);
}

// ---- backward: moe/rules/route_weights.h

/// Ids, g and logits of tokens [t, t + n). The logits of a masked token are not looked at: they may be NaN.
template <class S, class T>
void gather_chosen(const RouteParams& p, int64_t t, int64_t n, const RouteScratch<T>& w) {
  const Chosen<Native<T>>& c = w.chosen;
  for (int64_t lane = 0; lane < n; ++lane) {
    const auto at = [&](const Matrix& m, int64_t column) { return offset(m, t + lane, column); };
    for (int64_t j = 0; j < p.K; ++j) {
      const int64_t id = static_cast<const int32_t*>(p.chosen.data)[at(p.chosen, j)];
      const bool real = is_expert(p, id);
      c.ids[j][lane] = static_cast<Integer<T>>(real ? id : -1);
      c.logits[j][lane] =
          real ? to_accumulate(static_cast<const S*>(p.logits.data)[at(p.logits, id)])
               : -kInfinity<T>;
      c.grads[j][lane] = real ? static_cast<const T*>(p.grad_weights.data)[at(p.grad_weights, j)] *
                                    static_cast<T>(p.scale)
                              : T(0);
    }
  }
}

/// The logits that gather_chosen reads next: a cache line each, from as far as memory.
template <class S>
void prefetch_chosen(const RouteParams& p, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t)
    for (int64_t j = 0; j < p.K; ++j) {
      const int64_t id = static_cast<const int32_t*>(p.chosen.data)[offset(p.chosen, t, j)];
      if (is_expert(p, id))
        __builtin_prefetch(static_cast<const S*>(p.logits.data) + offset(p.logits, t, id));
    }
}

/// From G to the gradient of all logits of token t, in w.grad.
template <class S, class T>
void grad_softmax_over_all(const RouteParams& p, int64_t t, int64_t lane,
                           const RouteScratch<T>& w) {
  using V = Native<T>;
  const Chosen<V>& c = w.chosen;
  load_row<S>(p.logits, t, p.E, -kInfinity<T>, w.rows[0]);
  T highest;
  const T total = exponentials(p.E, w.rows[0], w.scores, &highest);
  T dot = 0;
  for (int64_t j = 0; j < p.K; ++j)
    if (const int64_t id = c.ids[j][lane]; id >= 0)
      dot += c.grads[j][lane] * (w.scores[id] / total);
  for (int64_t e = 0; e < padded_row(p.E); e += kLanes<T>)
    store(w.grad + e, load<V>(w.scores + e) / total * (load<V>(w.grad + e) - dot));
}

template <class S>
void grad_rows(const RouteParams& p, int64_t first, int64_t last, void* memory) {
  using T = Accumulate<S>;
  const RouteScratch<T> w(p, memory);
  const Chosen<Native<T>>& c = w.chosen;
  const auto clear = [&] {
    for (int64_t e = 0; e < padded_row(p.E); ++e) w.grad[e] = 0;
  };
  clear();
  for (int64_t t = first; t < last; t += w.kTokens) {
    const int64_t n = w.tokens_from(t, last);
    prefetch_chosen<S>(p, t + n, t + n + w.tokens_from(t + n, last));
    gather_chosen<S>(p, t, n, w);
    if (!is_over_all(p)) grad(p, c);
    for (int64_t lane = 0; lane < n; ++lane) {
      const auto each_chosen = [&](const auto& visit) {
        for (int64_t j = 0; j < p.K; ++j)
          if (const int64_t id = c.ids[j][lane]; id >= 0) visit(j, id);
      };
      bool any = false;
      each_chosen([&](int64_t j, int64_t id) {
        w.grad[id] += c.grads[j][lane];
        any = true;
      });
      if (any && is_over_all(p)) grad_softmax_over_all<S>(p, t + lane, lane, w);
      store_row(static_cast<S*>(p.grad_logits) + (t + lane) * p.E, w.grad, p.E);
      if (is_over_all(p))
        clear();
      else
        each_chosen([&](int64_t, int64_t id) { w.grad[id] = 0; });
    }
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
