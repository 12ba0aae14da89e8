// A selective scan written out in float64.
#pragma once

#include <vector>

#include "linear/cpu/kernels/params.h"
#include "linear/plan.h"
#include "signals.h"

namespace fulgurite {

struct ScanSizes {
  int64_t B, D, L, N, G;
  int64_t split = 0;  // a pack of two sequences where it is above 0
};

/// All inputs as numbers, which a test may change one of.
struct ScanProblem {
  Dtype dtype;
  ScanSizes size;
  bool softplus, gated, started, wide;  // wide: float32 parameters
  int64_t sequences = size.split > 0 ? 2 : size.B;
  SequencePlan plan;
  Dtype parameters = wide && dtype != Dtype::kFloat64 ? Dtype::kFloat32 : dtype;
  Dtype sums = accumulate(dtype);
  TestSignal u, delta, z, A, B, C, skip, bias, initial;
  /// One number of one input is `nudge` more than it is stored, for slopes.
  const TestSignal* nudged = nullptr;
  int64_t nudged_at = 0;
  double nudge = 0;

  ScanProblem(Dtype dtype, ScanSizes size, SignalOrder order, bool softplus, bool gated,
              bool started, bool wide)
      : dtype(dtype),
        size(size),
        softplus(softplus),
        gated(gated),
        started(started),
        wide(wide),
        u(dtype, size.B, size.D, size.L, order, 1),
        delta(parameters, size.B, size.D, size.L, order, 2),
        z(dtype, size.B, size.D, size.L, order, 3),
        A(parameters, 1, size.D, size.N, order, 4),
        B(parameters, size.B * size.G, size.N, size.L, order, 5),
        C(parameters, size.B * size.G, size.N, size.L, order, 6),
        skip(parameters, 1, size.D, 1, SignalOrder::kPositionsLast, 7),
        bias(parameters, 1, size.D, 1, SignalOrder::kPositionsLast, 8),
        initial(sums, sequences, size.D, size.N, order, 9) {
    for (int64_t d = 0; d < size.D; ++d)
      for (int64_t n = 0; n < size.N; ++n) A.x.set(A.at(0, d, n), -0.2 - std::fabs(A(0, d, n)));
    if (!softplus) make_steps_positive();
    if (size.split > 0)
      plan.add_pack({0, size.split, size.L});
    else
      plan.add_batch(size.B, size.L);
  }
  /// As softplus would: states whose decay is above 1 grow, and errors with them.
  void make_steps_positive() {
    for (int64_t d = 0; d < size.D; ++d) {
      bias.x.set(d, std::fabs(bias(0, d, 0)) / 4);
      for (int64_t b = 0; b < size.B; ++b)
        for (int64_t t = 0; t < size.L; ++t)
          delta.x.set(delta.at(b, d, t), std::fabs(delta(b, d, t)) / 2);
    }
  }
  Input input(const TestSignal& s, Dtype type) const {
    return {s.signal(), type == Dtype::kFloat32};
  }
  GroupedInput columns(const TestSignal& s) const {
    GroupedInput in{input(s, parameters), s.batch};
    in.batch = s.batch * size.G;
    return in;
  }
  void describe(SelectiveScanProblem& p) const {
    p.dtype = dtype;
    p.softplus = softplus;
    p.D = size.D;
    p.L = size.L;
    p.N = size.N;
    p.G = size.G;
    p.u = input(u, dtype);
    p.delta = input(delta, parameters);
    if (gated) p.z = input(z, dtype);
    p.A = input(A, parameters);
    p.B = columns(B);
    p.C = columns(C);
    p.skip = input(skip, parameters);
    p.delta_bias = input(bias, parameters);
    if (started) p.initial_state = initial.signal();
    p.parts = plan.pieces();
  }
  Span span(int64_t s) const { return plan.pieces().sequences[s]; }
  int64_t group(int64_t b, int64_t d) const { return b * size.G + d / (size.D / size.G); }

  double read(const TestSignal& s, int64_t b, int64_t c, int64_t t) const {
    return s(b, c, t) + (&s == nudged && s.at(b, c, t) == nudged_at ? nudge : 0);
  }
  double step(int64_t b, int64_t d, int64_t t) const {
    const double raw = read(delta, b, d, t) + read(bias, 0, d, 0);
    return softplus ? std::log1p(std::exp(raw)) : raw;
  }
  double gate(int64_t b, int64_t d, int64_t t) const {
    const double at = read(z, b, d, t);
    return gated ? at / (1 + std::exp(-at)) : 1;
  }
  /// Outputs (length) and last states (N) of a channel of a sequence.
  struct Channel {
    std::vector<double> out, state;
  };
  Channel channel(int64_t s, int64_t d) const {
    const Span at = span(s);
    Channel c{{}, std::vector<double>(static_cast<size_t>(size.N))};
    for (int64_t n = 0; n < size.N; ++n)
      c.state[static_cast<size_t>(n)] = started ? read(initial, s, d, n) : 0;
    for (int64_t i = 0; i < at.length; ++i) {
      const int64_t t = at.start + i, g = group(at.batch, d);
      const double dt = step(at.batch, d, t), ut = read(u, at.batch, d, t);
      double y = read(skip, 0, d, 0) * ut;
      for (int64_t n = 0; n < size.N; ++n) {
        double& x = c.state[static_cast<size_t>(n)];
        x = std::exp(dt * read(A, 0, d, n)) * x + dt * read(B, g, n, t) * ut;
        y += read(C, g, n, t) * x;
      }
      c.out.push_back(y * gate(at.batch, d, t));
    }
    return c;
  }
};

}  // namespace fulgurite
