// A chunk of linear attention: which keys its queries see, and what decays lie between.
//
//   P_ij = Π_{j<t≤i} a_t,  cum_i = Π_{t≤i} a_t from the chunk's start,  rest_j = Π_{t>j} a_t to its end,  a = exp(log_decay)
//
// Every one is a product of factors, P_ij = a_i·P_{i−1,j}: nothing overflows, −inf is a factor of 0, and a strong decay costs
// no digits to pairs that it does not lie between.
#pragma once

#include "linear/cpu/kernels/linear_params.h"
#include "linear/cpu/kernels/linear_products.h"
#include "linear/cpu/kernels/stage.h"
#include "simd/math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Query i reads the state as it is after key at[i] of its chunk, −1: as it was before the chunk.
struct ChunkReads {
  int64_t count;
  int64_t at[kLinearChunk];      // rises
  int64_t ends[kLinearChunk];    // at[i] + 1: the keys that query i sees
  int64_t begins[kLinearChunk];  // the first query that sees key j

  ChunkReads(const LinearAttentionProblem& p, int64_t count) : count(count) {
    for (int64_t i = 0, j = 0; i < count; ++i) {
      at[i] = p.grid.inner > 0 ? i / p.grid.inner * p.grid.inner - 1 : p.bonus.data ? i - 1 : i;
      ends[i] = at[i] + 1;
      for (; j < ends[i]; ++j) begins[j] = i;
    }
    for (int64_t j = ends[count - 1]; j < count; ++j) begins[j] = count;
  }
};

/// Numbers of one head and feature, or of one position and its features, in either type.
template <class S, class T>
void load_decays(const HeadsInput& x, int64_t at, int64_t stride, int64_t n, T* to) {
  using V = Native<T>;
  with_stored<S>(x.float32, [&](auto stored) {
    using X = decltype(stored);
    const X* const row = static_cast<const X*>(x.data) + at;
    for (int64_t i = 0; i < n; i += kWidth<V>)
      store(to + i, exp(load_strided<V>(row + i * stride, stride, n - i)));
  });
}

/// Decays that all features share.
template <class T>
struct PositionDecays {
  T a[kLinearChunk], cum[kLinearChunk], rest[kLinearChunk];  // cum: where query i reads
  T all = 1;

  template <class S>
  void load(const HeadsInput& log_decay, int64_t at, const ChunkReads& reads) {
    const int64_t count = reads.count;
    load_decays<S>(log_decay, at, log_decay.position, count, a);
    all = 1;
    for (int64_t i = 0, t = 0; i < count; ++i) {
      for (; t < reads.ends[i]; ++t) all *= a[t];
      cum[i] = all;
    }
    for (int64_t t = reads.ends[count - 1]; t < count; ++t) all *= a[t];
    rest[count - 1] = 1;
    for (int64_t j = count - 1; j > 0; --j) rest[j - 1] = rest[j] * a[j];
  }
};

/// m_ij ← m_ij·P·scale for the keys that query i sees, zeros for all others. a null: no decay.
template <class T>
__attribute__((noinline)) void decay_pairs(T* m, int64_t ld, const ChunkReads& reads, const T* a,
                                           T scale) {
  using V = Native<T>;
  alignas(64) T between[kLinearChunk] = {};
  int64_t t = 0;
  for (int64_t i = 0; i < reads.count; ++i, m += ld) {
    for (; t < reads.ends[i]; ++t) {
      if (a)
        for (int64_t j = 0; j <= t; j += kWidth<V>) store(between + j, load<V>(between + j) * a[t]);
      between[t] = 1;
    }
    const auto end = static_cast<Element<IntOf<V>>>(reads.ends[i]);
    for (int64_t j = 0; j < ld; j += kWidth<V>) {
      const IntOf<V> seen = lane_index<V>() + static_cast<Element<IntOf<V>>>(j) < end;
      const V decayed = load<V>(m + j) * (load<V>(between + j) * scale);
      store(m + j, select<V>(seen, decayed, V{}));
    }
  }
}

/// Decays of every feature of a range: rows of `ld` numbers.
template <class T>
struct FeatureDecays {
  int64_t ld;
  T *a, *cum, *rest;  // (positions, features); cum: where query i reads
  T* all;             // (features)

  FeatureDecays(Arena& arena, int64_t ld) : ld(ld) {
    for (T** rows : {&a, &cum, &rest}) *rows = arena.take<T>(kFeatureChunk * ld);
    all = arena.take<T>(ld);
  }

  /// Features from `at` on, n of them.
  template <class S>
  void load(const HeadsInput& log_decay, int64_t at, int64_t n, const ChunkReads& reads) const {
    using V = Native<T>;
    const int64_t count = reads.count;
    for (int64_t t = 0; t < count; ++t)
      load_decays<S>(log_decay, at + t * log_decay.position, log_decay.feature, n, a + t * ld);
    for (int64_t d = 0; d < n; d += kWidth<V>) {
      V product = splat<V>(1);
      int64_t t = 0;
      const auto through = [&](int64_t end) {
        for (; t < end; ++t)
          product = product * fulgurite::FULGURITE_VARIANT::load<V>(a + t * ld + d);
      };
      for (int64_t i = 0; i < count; ++i) {
        through(reads.ends[i]);
        store(cum + i * ld + d, product);
      }
      through(count);
      store(all + d, product);
      product = splat<V>(1);
      for (int64_t j = count - 1; j >= 0; --j) {
        store(rest + j * ld + d, product);
        product = product * fulgurite::FULGURITE_VARIANT::load<V>(a + j * ld + d);
      }
    }
  }
};

/// Goes up the positions of a chunk with its keys decayed to where each query reads: w_j = P_ij∘k_j.
///   pairs_ij = q_i·w_j          sums_i += Σ_j weights_ij w_j          what is null is not wanted
template <class T>
__attribute__((noinline)) void ascend(const ChunkReads& reads, int64_t n, int64_t ld, const T* q,
                                      const T* k, const T* a, T* w, int64_t ld_pairs, T* pairs,
                                      const T* weights, T* sums) {
  using V = Native<T>;
  constexpr int W = kWidth<V>;
  int64_t t = 0;
  for (int64_t i = 0; i < reads.count; ++i) {
    for (; t < reads.ends[i]; ++t)
      for (int64_t d = 0; d < n; d += W) {
        const V factor = load<V>(a + t * ld + d);
        for (int64_t j = 0; j < t; ++j) store(w + j * ld + d, load<V>(w + j * ld + d) * factor);
        store(w + t * ld + d, load<V>(k + t * ld + d));
      }
    if (pairs) {
      for (int64_t j = 0; j < t; ++j) pairs[i * ld_pairs + j] = dot(q + i * ld, w + j * ld, n);
      for (int64_t j = t; j < ld_pairs; ++j) pairs[i * ld_pairs + j] = 0;
    }
    if (sums)
      for (int64_t d = 0; d < n; d += W) {
        V sum = load<V>(sums + i * ld + d);
        for (int64_t j = 0; j < t; ++j)
          sum = madd(splat<V>(weights[i * ld_pairs + j]), load<V>(w + j * ld + d), sum);
        store(sums + i * ld + d, sum);
      }
  }
}

/// Goes down the keys of a chunk with its queries decayed to each: u_i = P_ij∘q_i.
///   sums_j += Σ_i weights_ij u_i          passed_t = Σ_{i reads ≥ t > j} weights_ij u_i∘k_j, what passes through position t
template <class T>
__attribute__((noinline)) void descend(const ChunkReads& reads, int64_t n, int64_t ld, const T* q,
                                       const T* k, const T* a, int64_t ld_weights, const T* weights,
                                       T* sums, T* passed) {
  using V = Native<T>;
  const int64_t count = reads.count;
  for (int64_t d = 0; d < n; d += kWidth<V>) {
    V u[kFeatureChunk], through[kFeatureChunk] = {};
    for (int64_t j = count - 1; j >= 0; --j) {
      const V key = load<V>(k + j * ld + d);
      if (j + 1 < count) {
        const V factor = load<V>(a + (j + 1) * ld + d);
        for (int64_t i = reads.begins[j + 1]; i < count; ++i) u[i] = u[i] * factor;
      }
      const int64_t before = j + 1 < count ? reads.begins[j + 1] : count;
      for (int64_t i = reads.begins[j]; i < before; ++i) u[i] = load<V>(q + i * ld + d);
      V sum{};
      int64_t i = count - 1;
      const auto add_down_to = [&](int64_t first) {
        for (; i >= first; --i) sum = madd(splat<V>(weights[i * ld_weights + j]), u[i], sum);
      };
      for (int64_t t = count - 1; t > j; --t) {
        add_down_to(reads.begins[t]);
        through[t] = madd(key, sum, through[t]);
      }
      add_down_to(reads.begins[j]);
      store(sums + j * ld + d, load<V>(sums + j * ld + d) + sum);
    }
    for (int64_t t = 0; t < count; ++t) store(passed + t * ld + d, through[t]);
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
