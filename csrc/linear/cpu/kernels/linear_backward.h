// A task of linear attention's backward: what it computes, its scratch memory, and a chunk's operands in it.
#pragma once

#include "linear/cpu/kernels/linear_chunks.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Features [d0, d0 + features) for the gradients of query, key, decays and states, from all columns of value; columns
/// [v0, v0 + values) for value's, from all features; or both at once, from all of either.
struct BackwardPart {
  bool of_features, of_values;
  int64_t sequence, first_head, heads, part_of_group;
  int64_t d0, features, v0, values;

  BackwardPart(const LinearAttentionBackwardParams& p, int64_t task) {
    const int64_t most = p.feature_tasks();
    of_features = task < most;
    of_values = !of_features || p.values == 0;
    d0 = v0 = 0;
    features = p.D;
    values = p.Dv;
    if (of_features) {
      const int64_t ranges = ceil_div(p.D, p.features), parts = p.group_parts();
      const int64_t at = task / ranges, within = at % parts * kHeadsAtOnce;
      sequence = at / parts / p.Hk;
      part_of_group = at % parts;
      first_head = at / parts % p.Hk * p.group() + within;
      heads = p.group() - within < kHeadsAtOnce ? p.group() - within : kHeadsAtOnce;
      d0 = task % ranges * p.features;
      features = p.D - d0 < p.features ? p.D - d0 : p.features;
    } else {
      const int64_t ranges = p.Dv > 0 && p.values > 0 ? ceil_div(p.Dv, p.values) : 1;
      const int64_t at = task - most;
      sequence = at / ranges / (p.H > 0 ? p.H : 1);
      first_head = at / ranges % (p.H > 0 ? p.H : 1);
      heads = 1;
      part_of_group = 0;
      v0 = at % ranges * p.values;
      values = p.Dv - v0 < p.values ? p.Dv - v0 : p.values;
    }
  }
};

/// Rows have ld (features) or values_ld (columns of value, and the ones of normalising) numbers, whole vectors. States of a
/// task of features lie turned, columns of value by features.
template <class S>
struct BackwardScratch {
  using T = Accumulate<S>;
  int64_t columns;  // of value, staged: normalising adds one to tasks of features
  int64_t ld, values_ld, pairs_ld, value_columns;
  T *q, *k, *read_q, *rest_k, *whole_q;  // read_q: cum∘q, rest_k: rest∘k, whole_q: of all features
  T *g, *v, *row;                        // g: of the gradient of out
  T *keys, *values, *panels;             // packed
  T *scores, *weights;                   // q·k and g·v, with what decays lie between
  T* grads;                              // of queries, or of keys
  T *of_read, *of_rest, *passed;         // parts of log_decay's gradient
  T *all, *ones, *bonus, *bonus_sums, *products;
  T *states, *state_grad, *read_grad, *read;  // of tasks of features
  T *value_grad, *g_panels, *value_state, *value_read;

  BackwardScratch(Arena& arena, const LinearAttentionBackwardParams& p, const BackwardPart& part) {
    const int64_t chunk = p.grid.chunk, D = part.features;
    const bool feature = p.decay == DecayKind::kFeature, f = part.of_features, r = part.of_values;
    columns = part.values + (f && p.normalize ? 1 : 0);
    ld = pad_columns<T>(D);
    values_ld = pad_columns<T>(columns);
    pairs_ld = pad_columns<T>(chunk);
    value_columns = pad_columns<T>(part.values);
    const auto take = [&](bool wanted, int64_t n) { return wanted ? arena.take<T>(n) : nullptr; };
    q = take(true, chunk * ld);
    k = take(true, chunk * ld);
    read_q = take(true, chunk * ld);
    rest_k = take(p.decay != DecayKind::kNone, chunk * ld);
    whole_q = take(D < p.D, chunk * pad_columns<T>(p.D));
    g = take(true, chunk * values_ld);
    v = take(f, chunk * values_ld);
    row = take(p.normalize, values_ld);
    keys = take(true, p.D * pairs_ld);
    values = take(f, columns * pairs_ld);
    panels = take(f, chunk * ld);
    scores = take(true, chunk * pairs_ld);
    weights = take(f, chunk * pairs_ld);
    grads = take(f, chunk * ld);
    const int64_t of_decay = !f || p.decay == DecayKind::kNone ? 0
                             : feature                         ? chunk * ld
                                                               : chunk * ceil_div(D, kFeatureUnit);
    of_read = take(of_decay > 0, of_decay);
    of_rest = take(of_decay > 0, of_decay);
    passed = take(of_decay > 0, feature ? of_decay : pairs_ld);
    for (T** numbers : {&all, &ones, &bonus, &bonus_sums, &products})
      *numbers = arena.take<T>(pad_columns<T>(p.D));
    const int64_t state = columns * ld;
    states = take(f, state * (p.causal ? p.grid.chunks_of_block() : 1));
    state_grad = take(f, state);
    read_grad = take(f && p.grid.held > 0, state);
    read = take(f && p.grid.held > kLinearBlock, state);
    value_grad = take(r, chunk * value_columns);
    g_panels = take(r, chunk * value_columns);
    value_state = take(r, p.D * values_ld);
    value_read = take(r && !f && p.grid.held > 0, p.D * values_ld);
  }
};

/// passed_t = Σ_{i reads ≥ t > j} weights_ij scores_ij: of log_decay's gradient at t what pairs of positions give. Down the
/// positions, queries that read at t join the sums of each key.
template <class T>
__attribute__((noinline)) void sum_passed(const ChunkReads& reads, int64_t ld, const T* weights,
                                          const T* scores, T* passed) {
  using V = Native<T>;
  alignas(64) T sums[kLinearChunk] = {};
  int64_t i = reads.count - 1;
  for (int64_t t = reads.count - 1; t >= 0; --t) {
    for (; i >= reads.begins[t]; --i)
      for (int64_t j = 0; j < reads.ends[i]; j += kWidth<V>)
        store(sums + j,
              madd(load<V>(weights + i * ld + j), load<V>(scores + i * ld + j), load<V>(sums + j)));
    V total{};
    for (int64_t j = 0; j < t; j += kWidth<V>) {
      const IntOf<V> before =
          lane_index<V>() + static_cast<Element<IntOf<V>>>(j) < static_cast<Element<IntOf<V>>>(t);
      total += select<V>(before, load<V>(sums + j), V{});
    }
    passed[t] = sum(total);
  }
}

/// Σ_rows x∘y of two packed states, for each column.
template <class T>
__attribute__((noinline)) void column_products(const T* x, const T* y, int64_t rows,
                                               int64_t columns, T* to) {
  using V = Native<T>;
  for (int64_t n = 0; n < columns; n += kPanelColumns<T>) {
    const int64_t width = panel_width<T>(n, columns);
    with_count<kPanelVectors>(width / kLanes<T>, [&](auto vectors) {
      constexpr int NV = decltype(vectors)::value;
      V sums[NV] = {};
      for (int64_t r = 0; r < rows; ++r)
        for (int j = 0; j < NV; ++j) {
          const int64_t at = n * rows + r * width + j * kWidth<V>;
          sums[j] = madd(load<V>(x + at), load<V>(y + at), sums[j]);
        }
      for (int j = 0; j < NV; ++j) store(to + n + j * kWidth<V>, sums[j]);
    });
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
