// Gradients of what is added to the scores: the bias, at its own broadcast shape, and the learned sink.
//
//   dbias = Σ dS over the dimensions it broadcasts      dsink_h = −Σ_{b,i} exp(sink_h − lse)·δ        (dS, δ: backward.h)
//
// Where the tasks of the backward own whole parts of dbias they add it up (backward.cpp), and the parts are summed here. Else, for a
// bias that broadcasts over heads or keys, scores and dP are computed once more.
//
// Reads: parts of dbias; or what the backward reads, keys and values packed. grad_sink: sink, lse and δ.
// Writes: grad_bias, or grad_sink.
// Task: grad_bias one tile of dbias; reduce_bias kBiasChunk elements of it; grad_sink one head.
// Order of sums: a tile walks everything that broadcasts onto it in order: batches, heads, query blocks, key blocks. Parts in order.
// A head's sink over batches and query blocks in order.

#include "attention/cpu/kernels/backward.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// The tile of dbias that a task owns, as begin and end of the walk over each dimension.
struct BiasWalk {
  int64_t batch, head, query_block, key_block;  // the tile of dbias; 0 in broadcast dimensions
  int64_t last_head, last_query_block, last_key_block;
  bool one_row, one_column;
};

BiasWalk walk_of(const AttentionParams& p, int64_t task) {
  const Sequence& s = p.sequences[0];  // every batch entry has the same N and M
  const int64_t query_blocks = ceil_div(s.N, s.query_rows), key_blocks = key_blocks_of(s);
  const bool all_heads = p.bias_shape[1] == 1, one_row = p.bias_shape[2] == 1,
             one_column = p.bias_shape[3] == 1;
  BiasWalk w{};
  w.one_row = one_row;
  w.one_column = one_column;
  w.key_block = one_column ? 0 : task % key_blocks;
  task /= one_column ? 1 : key_blocks;
  w.query_block = one_row ? 0 : task % query_blocks;
  task /= one_row ? 1 : query_blocks;
  w.head = all_heads ? 0 : task % p.Hq;
  w.batch = task / (all_heads ? 1 : p.Hq);
  w.last_head = all_heads ? p.Hq : w.head + 1;
  w.last_query_block = one_row ? query_blocks : w.query_block + 1;
  w.last_key_block = one_column ? key_blocks : w.key_block + 1;
  return w;
}

/// Columns [c0, c1) of a strip, added up over its rows.
template <class T>
void add_rows(const Tile& t, const T* grads, T* to) {
  using V = Native<T>;
  for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
    V total{};
    for (int64_t r = 0; r < t.rows; ++r) total += load<V>(grads + r * kScoreStride + c);
    store(to + c, load<V>(to + c) + total);
  }
}

/// A strip into the sums of its tile: one row of them where the bias has one.
template <class T>
void add_strip(const BiasWalk& walk, const Tile& t, int64_t r0, const T* grads, T* sums) {
  using V = Native<T>;
  if (walk.one_row) return add_rows(t, grads, sums);
  for (int64_t r = 0; r < t.rows; ++r) {
    T* const to = sums + (r0 + r) * kScoreStride;
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>)
      store(to + c, load<V>(to + c) + load<V>(grads + r * kScoreStride + c));
  }
}

/// A tile's sums into those of the tile of dbias, and zeros in their place: sums of sums have shorter chains of additions.
template <class T>
void add_tile(const BiasWalk& walk, const Tile& t, T* sums, T* acc) {
  using V = Native<T>;
  for (int64_t r = 0; r < (walk.one_row ? 1 : t.rows); ++r) {
    T *const from = sums + r * kScoreStride, *const to = acc + r * kScoreStride;
    V total{};
    for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) {
      if (walk.one_column)
        total += load<V>(from + c);
      else
        store(to + c, load<V>(to + c) + load<V>(from + c));
      store(from + c, V{});
    }
    if (walk.one_column) to[0] += sum(total);
  }
}

template <class S>
void grad_bias_task(const AttentionParams& p, int64_t task, void* scratch) {
  using T = Accumulate<S>;
  Arena arena(scratch);
  BackwardScratch<S> w(p, arena);
  constexpr int64_t kElements = kMostQueryRows * kScoreStride;
  T *const acc = arena.take<T>(kElements), *const sums = arena.take<T>(kElements);
  __builtin_memset(acc, 0, sizeof(T) * kElements);
  __builtin_memset(sums, 0, sizeof(T) * kElements);
  const BiasWalk walk = walk_of(p, task);
  const Sequence& s = p.sequences[0];
  for (int64_t b = walk.batch; b < p.B; b += p.bias_shape[0]) {
    const ScoreRule rule = rule_of(p, b);
    for (int64_t h = walk.head; h < walk.last_head; ++h)
      for (int64_t query_block = walk.query_block; query_block < walk.last_query_block;
           ++query_block) {
        bool loaded = false;
        for (int64_t key_block = walk.key_block; key_block < walk.last_key_block; ++key_block) {
          const Tile t = make_tile<T>(p, rule, b, h, query_block, key_block);
          if (t.state == TileState::kSkip) continue;
          w.packed = packed_block<S>(p, {b, h / p.group, key_block});
          if (!loaded) load_rows<S>(p, b, h, t.i0, t.rows, w);
          loaded = true;
          for_gradient_strips(p, rule, t, w,
                              [&](const Tile& strip, int64_t r0, T*, const T* grads, const T*) {
                                add_strip(walk, strip, r0, grads, sums);
                              });
          add_tile(walk, t, sums, acc);
        }
      }
  }
  const int64_t i0 = walk.query_block * s.query_rows, j0 = walk.key_block * kKeyBlock;
  const int64_t rows = walk.one_row ? 1 : s.N - i0 < s.query_rows ? s.N - i0 : s.query_rows;
  const int64_t columns = walk.one_column ? 1 : s.M - j0 < kKeyBlock ? s.M - j0 : kKeyBlock;
  with_storage_beside<T>(p.rule.bias_dtype, [&](auto bias) {
    using B = decltype(bias);
    B* const to =
        static_cast<B*>(p.grad_bias) +
        ((walk.batch * p.bias_shape[1] + walk.head) * p.bias_shape[2] + i0) * p.bias_shape[3] + j0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        to[r * p.bias_shape[3] + c] =
            from_accumulate<B>(static_cast<Accumulate<B>>(acc[r * kScoreStride + c]));
  });
}

/// Elements [task·kBiasChunk, …) of dbias: the sum of the parts.
template <class S>
void reduce_bias_task(const AttentionParams& p, int64_t task) {
  using T = Accumulate<S>;
  const int64_t per_batch = p.bias_shape[1] * p.bias_shape[2] * p.bias_shape[3],
                total = p.bias_shape[0] * per_batch, first = task * kBiasChunk,
                last = first + kBiasChunk < total ? first + kBiasChunk : total;
  const T* const parts = static_cast<const T*>(p.grad_bias_parts);
  with_storage_beside<T>(p.rule.bias_dtype, [&](auto bias) {
    using B = decltype(bias);
    for (int64_t e = first; e < last; ++e) {
      T sum = 0;
      for (int64_t q = 0; q < p.batch_stride; q += p.bias_shape[0]) sum += parts[q * per_batch + e];
      static_cast<B*>(p.grad_bias)[e] = from_accumulate<B>(static_cast<Accumulate<B>>(sum));
    }
  });
}

/// One head: rows in order of batch and position.
template <class T>
void grad_sink_task(const AttentionParams& p, int64_t head) {
  const T sink = static_cast<const T*>(p.sink)[head];
  T total = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    const Sequence& s = p.sequences[b];
    for (int64_t i0 = 0; i0 < s.N; i0 += s.query_rows) {
      const int64_t rows = s.N - i0 < s.query_rows ? s.N - i0 : s.query_rows;
      const int64_t first = query_block_index(p, b, head, i0 / s.query_rows) * p.query_block_rows;
      const T* const delta = static_cast<const T*>(p.delta) + first;
      T block = 0;  // shorter chains of additions
      for (int64_t r = 0; r < rows; ++r) {
        const T lse = *rows_of<T>(p.saved_lse, b, head, s.query_start + i0 + r).data;
        T base = lse, inverse = 1;
        if (p.row_max && lse_is_coarse(lse, p.dtype)) {
          base = static_cast<const T*>(p.row_max)[first + r];
          inverse = static_cast<const T*>(p.row_inverse_sum)[first + r];
        }
        if (sink != kHidden<T>)
          block -= exp_flushed(splat<Native<T>>(sink - base))[0] * inverse * delta[r];
      }
      total += block;
    }
  }
  static_cast<T*>(p.grad_sink)[head] = total;
}

}  // namespace

void attention_grad_bias(const AttentionParams& p, int64_t task, void* scratch) {
  with_storage(p.dtype, [&](auto s) { grad_bias_task<decltype(s)>(p, task, scratch); });
}

void attention_reduce_bias(const AttentionParams& p, int64_t task, void*) {
  with_storage(p.dtype, [&](auto s) { reduce_bias_task<decltype(s)>(p, task); });
}

void attention_grad_sink(const AttentionParams& p, int64_t head, void*) {
  with_storage(p.dtype, [&](auto s) { grad_sink_task<Accumulate<decltype(s)>>(p, head); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
