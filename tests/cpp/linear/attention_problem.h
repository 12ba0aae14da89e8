// Linear attention written out in float64, one position after another.
#pragma once

#include <vector>

#include "elements.h"
#include "linear/cpu/kernels/linear_params.h"

namespace fulgurite {

struct LinearSizes {
  int64_t B, H, Hk, N, D, Dv;
  int64_t split = 0;  // a pack of two sequences where it is above 0
};

struct LinearOptions {
  DecayKind decay = DecayKind::kNone;
  bool bonus = false, started = false, causal = true, normalize = false;
  int64_t exclusive_chunk = 0;
  bool float32 = false;  // decays and bonus
};

/// (B,H,N,D), positions before heads in memory, with gaps between features.
struct TestHeads {
  int64_t B, H, N, D;
  Elements x;

  TestHeads(Dtype dtype, int64_t B, int64_t H, int64_t N, int64_t D, int seed, double size = 1)
      : B(B), H(H), N(N), D(D), x(Elements::sines(dtype, B * H * N * D * 2 + 1, seed, size)) {}
  int64_t at(int64_t b, int64_t h, int64_t n, int64_t d) const {
    return ((b * N + n) * H + h) * D * 2 + d * 2;
  }
  double operator()(int64_t b, int64_t h, int64_t n, int64_t d) const { return x[at(b, h, n, d)]; }
  Heads heads() const { return {x.data(), N * H * D * 2, D * 2, H * D * 2, 2}; }
};

struct LinearProblem {
  Dtype dtype;
  LinearSizes size;
  LinearOptions options;
  Dtype sums = accumulate(dtype);
  Dtype parameters = options.float32 && dtype != Dtype::kFloat64 ? Dtype::kFloat32 : dtype;
  double scale = 0.75, eps = 0.125;
  int64_t sequences = size.split > 0 ? 2 : size.B;
  TestHeads query, key, value, log_decay, bonus, state, norm;
  std::vector<LinearSpan> spans;
  /// One number of one input is `nudge` more than it is stored, for slopes.
  const TestHeads* nudged = nullptr;
  int64_t nudged_at = 0;
  double nudge = 0;

  LinearProblem(Dtype dtype, LinearSizes size, LinearOptions options)
      : dtype(dtype),
        size(size),
        options(options),
        query(dtype, size.B, size.Hk, size.N, size.D, 1),
        key(dtype, size.B, size.Hk, size.N, size.D, 2),
        value(dtype, size.B, size.H, size.N, size.Dv, 3),
        log_decay(parameters, size.B, size.H, size.N, size.D, 4),
        bonus(parameters, 1, size.H, 1, size.D, 5),
        state(sums, sequences, size.H, size.D, size.Dv, 6),
        norm(sums, sequences, size.H, size.D, 1, 7) {
    for (TestHeads* x : {&log_decay}) negate(*x);
    if (options.normalize)
      for (TestHeads* x : {&query, &key, &norm}) make_positive(*x);
    const ChunkGrid grid = this->grid();
    int64_t block = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const bool packed = size.split > 0;
      const int64_t start = packed && s == 1 ? size.split : 0;
      const int64_t end = packed && s == 0 ? size.split : size.N;
      spans.push_back({packed ? 0 : s, start, end - start, end - start, block});
      block += grid.blocks(end - start);
    }
  }
  template <class Change>
  static void change(TestHeads& x, const Change& change) {
    for (int64_t b = 0; b < x.B; ++b)
      for (int64_t h = 0; h < x.H; ++h)
        for (int64_t n = 0; n < x.N; ++n)
          for (int64_t d = 0; d < x.D; ++d) x.x.set(x.at(b, h, n, d), change(x(b, h, n, d)));
  }
  static void negate(TestHeads& x) {
    change(x, [](double y) { return -std::fabs(y); });
  }
  static void make_positive(TestHeads& x) {
    change(x, [](double y) { return 0.25 + std::fabs(y); });
  }
  ChunkGrid grid() const {
    return chunk_grid(options.decay == DecayKind::kFeature, options.exclusive_chunk);
  }
  int64_t columns() const { return size.Dv + (options.normalize ? 1 : 0); }
  int64_t kept_blocks() const {
    return options.causal ? size.B * size.N / grid().least_block() + sequences : sequences;
  }

  void describe(LinearAttentionProblem& p) const {
    p.dtype = dtype;
    p.B = size.B;
    p.H = size.H;
    p.Hk = size.Hk;
    p.N = p.M = size.N;
    p.D = size.D;
    p.Dv = size.Dv;
    p.scale = scale;
    p.eps = eps;
    p.causal = options.causal;
    p.normalize = options.normalize;
    p.decay = options.decay;
    p.grid = grid();
    p.query = query.heads();
    p.key = key.heads();
    p.value = value.heads();
    const bool float32 = parameters == Dtype::kFloat32;
    if (options.decay != DecayKind::kNone) p.log_decay = {log_decay.heads(), float32};
    if (options.decay == DecayKind::kPosition) p.log_decay.feature = 0;
    if (options.bonus) p.bonus = {bonus.heads(), float32};
    if (options.started) p.initial_state = state.heads();
    if (options.started && options.normalize) p.initial_norm = norm.heads();
    p.spans = spans.data();
    p.sequences = sequences;
  }

  double read(const TestHeads& x, int64_t b, int64_t h, int64_t n, int64_t d) const {
    return x(b, h, n, d) + (&x == nudged && x.at(b, h, n, d) == nudged_at ? nudge : 0);
  }
  double decay(int64_t b, int64_t h, int64_t n, int64_t d) const {
    if (options.decay == DecayKind::kNone) return 1;
    return std::exp(read(log_decay, b, h, n, options.decay == DecayKind::kFeature ? d : 0));
  }

  using Numbers = std::vector<double>;
  /// out (queries, Dv), state (D, columns), denominators (queries).
  struct Head {
    Numbers out, state, denominators;
  };
  Head head(int64_t s, int64_t h) const {
    const LinearSpan& span = spans[static_cast<size_t>(s)];
    const int64_t D = size.D, C = columns(), kh = h / (size.H / size.Hk), b = span.batch;
    Head r;
    r.state.assign(static_cast<size_t>(D * C), 0);
    for (int64_t d = 0; d < D && options.started; ++d)
      for (int64_t c = 0; c < C; ++c)
        r.state[static_cast<size_t>(d * C + c)] =
            c < size.Dv ? read(state, s, h, d, c) : read(norm, s, h, d, 0);
    const auto write = [&](int64_t t, int64_t d, int64_t c) {
      return read(key, b, kh, t, d) * (c < size.Dv ? read(value, b, h, t, c) : 1.0);
    };
    const auto step = [&](int64_t t) {
      for (int64_t d = 0; d < D; ++d)
        for (int64_t c = 0; c < C; ++c) {
          double& x = r.state[static_cast<size_t>(d * C + c)];
          x = decay(b, h, t, d) * x + write(t, d, c);
        }
    };
    if (!options.causal)
      for (int64_t i = 0; i < span.keys; ++i) step(span.start + i);
    Numbers seen = r.state;
    for (int64_t i = 0; i < span.queries; ++i) {
      const int64_t t = span.start + i, c = options.exclusive_chunk;
      if (c > 0 && i % c == 0) seen = r.state;
      if (options.bonus) seen = r.state;
      if (options.causal) step(t);
      if (options.causal && !options.bonus && c == 0) seen = r.state;
      read_state(seen, b, kh, h, t, write, r);
    }
    return r;
  }

 private:
  template <class Write>
  void read_state(const Numbers& seen, int64_t b, int64_t kh, int64_t h, int64_t t,
                  const Write& write, Head& r) const {
    const int64_t C = columns();
    Numbers sums(static_cast<size_t>(C), 0);
    for (int64_t d = 0; d < size.D; ++d)
      for (int64_t c = 0; c < C; ++c) {
        double x = seen[static_cast<size_t>(d * C + c)];
        if (options.bonus) x += read(bonus, 0, h, 0, d) * write(t, d, c);
        sums[static_cast<size_t>(c)] += read(query, b, kh, t, d) * x;
      }
    const double divisor = options.normalize ? sums[static_cast<size_t>(size.Dv)] + eps : 1;
    if (options.normalize) r.denominators.push_back(divisor - eps);
    for (int64_t c = 0; c < size.Dv; ++c)
      r.out.push_back(scale * sums[static_cast<size_t>(c)] / divisor);
  }
};

/// Every kind of call, of few positions and over the edges of chunks.
template <class Check>
void for_linear_calls(const Check& check) {
  using K = DecayKind;
  check(LinearSizes{2, 4, 2, 20, 5, 6}, LinearOptions{K::kPosition, false, true});
  check(LinearSizes{1, 2, 2, 70, 3, 4}, LinearOptions{K::kPosition});
  check(LinearSizes{1, 2, 1, 35, 5, 9, 17},
        LinearOptions{K::kFeature, false, true, true, false, 0, true});
  check(LinearSizes{1, 2, 2, 18, 6, 4}, LinearOptions{K::kFeature, true, true});
  check(LinearSizes{1, 2, 1, 9, 5, 3},
        LinearOptions{K::kPosition, true, false, true, false, 0, true});
  check(LinearSizes{1, 2, 2, 11, 4, 18}, LinearOptions{K::kPosition, false, true, true, true});
  check(LinearSizes{1, 2, 2, 12, 4, 5, 7}, LinearOptions{K::kNone, false, true, false, true});
  check(LinearSizes{1, 1, 1, 22, 4, 5}, LinearOptions{K::kPosition, false, true, true, false, 5});
  check(LinearSizes{1, 1, 1, 41, 3, 4}, LinearOptions{K::kFeature, false, true, true, false, 18});
  check(LinearSizes{2, 6, 1, 5, 3, 4}, LinearOptions{K::kPosition});
  check(LinearSizes{1, 1, 1, 7, 40, 37}, LinearOptions{K::kNone, false, true});
}

}  // namespace fulgurite
