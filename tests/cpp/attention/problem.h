// Two packed sequences of different lengths, several tiles long, two query heads on one key/value head; with plain loops
// for what the kernels should give.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "attention/cpu/kernels/params.h"
#include "catch.h"
#include "stored.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
AttentionTaskFn attention_pack, attention_forward, attention_delta, attention_normalise,
    attention_backward, attention_reduce_query, attention_grad_sink, attention_grad_bias,
    attention_reduce_bias;
AttentionLayoutFn attention_forward_layout, attention_normalise_layout, attention_backward_layout;
}  // namespace FULGURITE_VARIANT

namespace attention_test {

/// Rows of all heads as (head, row, width), as attention_varlen's tensors seen head by head.
struct Problem {
  static constexpr int64_t Hq = 2, D = 9, Dv = 5, N = 110 + 7, M = 600 + 20, key_blocks = 6;
  static constexpr int64_t query_blocks = 4;
  std::vector<Sequence> sequences{{0, 110, 0, 600, 48, 0, 0, 0, 0},
                                  {110, 7, 600, 20, 7, 3, 5, 0, 0}};
  Rows query = numbers<Rows>(Hq * N * D, 1), key = numbers<Rows>(M * D, 2),
       value = numbers<Rows>(M * Dv, 3), grad_out = numbers<Rows>(Hq * N * Dv, 4);
  Rows out = Rows(Hq * N * Dv), grad_query = Rows(Hq * N * D), grad_key = Rows(M * D),
       grad_value = Rows(M * Dv);
  Sums grad_lse = numbers<Sums>(Hq * N, 5), sink{0.3, -0.2}, lse = Sums(Hq * N),
       grad_sink = Sums(Hq), delta, row_max, row_inverse_sum;
  Rows bias;  // broadcast as bias_shape says
  int64_t coarse_rows = 0;
  std::vector<Sums> parts = std::vector<Sums>(2 * kQueryParts);
  void* part_pointers[2 * kQueryParts];
  std::vector<int64_t> tiles_done = std::vector<int64_t>(key_blocks);
  std::vector<std::vector<char>> packed = std::vector<std::vector<char>>(4);
  bool finite[2 * key_blocks], rows_finite[2 * Hq * query_blocks];
  AttentionLayout layout{};
  AttentionParams p{};

  explicit Problem(bool packs_in_tasks) {
    p.packs_in_tasks = packs_in_tasks;
    p.dtype = kDtype;
    p.Hq = p.group = Hq;
    p.Hkv = 1;
    p.D = D;
    p.Dv = Dv;
    p.scale = p.score_unit = 0.7;
    p.plain_scores = true;
    p.score_scale = 1;
    p.rule.window_left = p.rule.window_right = -1;
    p.bottom_right = true;
    p.sequences = sequences.data();
    p.B = p.batch_stride = 2;
    p.query_blocks = query_blocks;
    p.key_blocks = key_blocks;
    p.query = {query.data(), {0, N * D, D, 1}};
    p.key = {key.data(), {0, M * D, D, 1}};
    p.value = {value.data(), {0, M * Dv, Dv, 1}};
    p.sink = sink.data();
    p.out = {out.data(), {0, N * Dv, Dv}};
    p.lse = {lse.data(), {0, N, 1}};
    p.saved_out = {out.data(), {0, N * Dv, Dv, 1}};
    p.saved_lse = {lse.data(), {0, N, 1, 0}};
    p.grad_out = {grad_out.data(), {0, N * Dv, Dv, 1}};
    p.grad_lse = {grad_lse.data(), {0, N, 1, 0}};
    p.grad_query = {grad_query.data(), {0, N * D, D}};
    p.grad_key = {grad_key.data(), {0, M * D, D}};
    p.grad_value = {grad_value.data(), {0, M * Dv, Dv}};
    p.grad_sink = grad_sink.data();
  }

  /// Three threads take the tasks in turns. Those of the backward wait for earlier ones of another thread: blocks 4 and 5 of
  /// the first sequence for 0 and 1.
  void run(AttentionTaskFn& kernel, int64_t tasks, int64_t scratch_bytes) {
    const auto run_from = [&, scratch_bytes](int64_t first) {
      std::vector<char> memory(static_cast<size_t>(scratch_bytes) + 64);
      const uintptr_t aligned = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
      for (int64_t task = first; task < tasks; task += 3)
        kernel(p, task, reinterpret_cast<void*>(aligned));
    };
    std::thread second(run_from, 1), third(run_from, 2);
    run_from(0);
    second.join();
    third.join();
  }
  /// Packs in tasks or before them, as p.packs_in_tasks says.
  void forward() {
    using namespace FULGURITE_VARIANT;
    attention_forward_layout(p, &layout);
    for (int b = 0; b < 2; ++b) {
      Sequence& s = sequences[b];
      s.packed_start = b == 0 ? 0 : sequences[0].packed_keys;
      s.packed_keys = (s.M + layout.key_multiple - 1) / layout.key_multiple * layout.key_multiple;
    }
    pack();
    run(attention_forward, p.query_blocks * Hq, layout.forward_scratch);
  }
  void backward() {
    using namespace FULGURITE_VARIANT;
    attention_backward_layout(p, &layout);
    for (size_t i = 0; i < parts.size(); ++i) {
      const int64_t rows = Hq * sequences[i / kQueryParts].N;
      parts[i].resize(static_cast<size_t>(rows * layout.query_part));
      part_pointers[i] = parts[i].data();
    }
    p.query_parts = part_pointers;
    p.tiles_done = tiles_done.data();
    delta.resize(static_cast<size_t>(Hq * query_blocks * layout.backward_rows));
    p.delta = delta.data();
    p.coarse_rows = &coarse_rows;
    p.query_block_rows = layout.backward_rows;
    p.query_finite = rows_finite;
    p.grad_out_finite = rows_finite + Hq * query_blocks;
    run(attention_delta, p.query_blocks * Hq, 0);
    if (coarse_rows != 0) normalise();
    run(attention_backward, p.key_blocks, layout.backward_scratch);
    run(attention_reduce_query, p.query_blocks * Hq, layout.reduce_query_scratch);
    if (p.grad_sink) run(attention_grad_sink, Hq, 0);
  }

  /// Scores get a bias of this shape, of which batch entry 0 is the first sequence.
  void add_bias(const int64_t (&shape)[4], double size) {
    p.plain_scores = false;
    p.score_unit = 1;
    int64_t elements = 1;
    for (int d = 3; d >= 0; --d) {
      p.bias_shape[d] = shape[d];
      p.rule.bias.strides[d] = shape[d] == 1 ? 0 : elements;
      elements *= shape[d];
    }
    bias = numbers<Rows>(elements, 7, size);
    p.rule.bias.batches = shape[0];
    p.rule.bias.data = bias.data();
    p.rule.bias_dtype = kDtype;
  }
  /// The bias's element of a pair; i and j count within their sequence.
  int64_t bias_index(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return p.rule.bias.offset(b, h, i, j);
  }

  /// Calls see(query row, key row) for every kept pair.
  void for_pairs(const std::function<void(int64_t, int64_t)>& see) const {
    for (const Sequence& s : sequences)
      for (int64_t i = 0; i < s.N; ++i)
        for (int64_t j = 0; j < s.M; ++j) {
          const int64_t center = i + s.M - s.N;
          const bool near = p.rule.window_left < 0 || center - p.rule.window_left <= j;
          if ((!p.rule.causal || j <= center) && (near || j < p.rule.sink_tokens))
            see(s.query_start + i, s.key_start + j);
        }
  }
  double score(int64_t h, int64_t i, int64_t j) const {
    const double product = p.scale * dot(&query[(h * N + i) * D], &key[j * D], D);
    if (bias.empty()) return product;
    const int64_t b = i >= sequences[1].query_start;
    // Rounded as the kernels round it.
    return static_cast<Accumulate<Storage>>(
        product + bias[bias_index(b, h, i - sequences[b].query_start, j - sequences[b].key_start)]);
  }
  /// exp(score − lse) of every kept pair of head h, made by a softmax of its own: N rows of M.
  Numbers weights(int64_t h) const {
    const bool with_sink = p.sink != nullptr;
    Numbers w(static_cast<size_t>(N * M)), max(N, with_sink ? double(sink[h]) : -INFINITY), sum(N);
    for_pairs([&](int64_t i, int64_t j) { max[i] = std::max(max[i], score(h, i, j)); });
    for (int64_t i = 0; i < N && with_sink; ++i) sum[i] = std::exp(sink[h] - max[i]);
    for_pairs([&](int64_t i, int64_t j) { sum[i] += std::exp(score(h, i, j) - max[i]); });
    for_pairs(
        [&](int64_t i, int64_t j) { w[i * M + j] = std::exp(score(h, i, j) - max[i]) / sum[i]; });
    return w;
  }
  /// exp(sink − lse) of the rows of head h.
  Numbers sink_weights(int64_t h) const {
    const Numbers w = weights(h);
    Numbers rest(N, 1.0);
    for_pairs([&](int64_t i, int64_t j) { rest[i] -= w[i * M + j]; });
    return rest;
  }
  static double dot(const Cell<Storage>* a, const Cell<Storage>* b, int64_t n) {
    double total = 0;
    for (int64_t d = 0; d < n; ++d) total += a[d] * b[d];
    return total;
  }

 private:
  void normalise() {
    row_max.resize(delta.size());
    row_inverse_sum.resize(delta.size());
    p.row_max = row_max.data();
    p.row_inverse_sum = row_inverse_sum.data();
    FULGURITE_VARIANT::attention_normalise_layout(p, &layout);
    run(FULGURITE_VARIANT::attention_normalise, p.query_blocks * Hq, layout.normalise_scratch);
  }
  void pack() {
    if (p.packs_in_tasks) return;
    const int64_t sizes[] = {layout.key_transposed, layout.key_rows, layout.value_transposed,
                             layout.value_rows};
    const int64_t packed_keys = sequences[1].packed_start + sequences[1].packed_keys;
    void** const pointers[] = {&p.key_transposed, &p.key_rows, &p.value_transposed, &p.value_rows};
    for (int i = 0; i < 4; ++i) {
      packed[i].resize(static_cast<size_t>(packed_keys * sizes[i]));
      *pointers[i] = packed[i].data();
    }
    p.key_finite = finite;
    p.value_finite = finite + key_blocks;
    run(FULGURITE_VARIANT::attention_pack, p.key_blocks, 0);
  }
};

}  // namespace attention_test
}  // namespace fulgurite
