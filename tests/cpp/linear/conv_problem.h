// A causal convolution written out in float64, its gradients as slopes.
#pragma once

#include <vector>

#include "linear/cpu/kernels/params.h"
#include "linear/plan.h"
#include "signals.h"

namespace fulgurite {

inline constexpr double kUnwritten = 99;

struct ConvProblem {
  Dtype dtype;
  int64_t B, C, L, W, sequences;
  bool silu, biased, started, wide;  // wide: float32 parameters
  SequencePlan plan;
  Dtype parameters = wide && dtype != Dtype::kFloat64 ? Dtype::kFloat32 : dtype;
  TestSignal x, initial, weight, bias;

  /// A pack of two sequences where `split` > 0, else a batch.
  ConvProblem(Dtype dtype, int64_t B, int64_t C, int64_t L, int64_t W, SignalOrder order, bool silu,
              bool biased, bool started, bool wide, int64_t split = 0)
      : dtype(dtype),
        B(B),
        C(C),
        L(L),
        W(W),
        sequences(split > 0 ? 2 : B),
        silu(silu),
        biased(biased),
        started(started),
        wide(wide),
        x(dtype, B, C, L, order, 1),
        initial(dtype, sequences, C, W - 1, order, 2),
        weight(parameters, 1, C, W, order, 3),
        bias(parameters, 1, C, 1, SignalOrder::kPositionsLast, 4) {
    if (split > 0)
      plan.add_pack({0, split, L});
    else
      plan.add_batch(B, L);
  }
  void describe(CausalConv1dProblem& p) const {
    p.dtype = dtype;
    const bool float32 = parameters == Dtype::kFloat32;
    p.activation = silu ? ConvActivation::kSilu : ConvActivation::kNone;
    p.C = C;
    p.L = L;
    p.W = W;
    p.x = x.signal();
    p.weight = {weight.signal(), float32};
    p.bias = {biased ? bias.signal() : Signal{}, float32};
    if (started) p.initial_state = initial.signal();
    p.parts = plan.pieces();
  }
  Span span(int64_t s) const { return plan.pieces().sequences[s]; }
  /// Input t of sequence s, before its first for t < 0.
  double input(int64_t s, int64_t c, int64_t t) const {
    if (t >= 0) return x(span(s).batch, c, span(s).start + t);
    return started ? initial(s, c, t + W - 1) : 0;
  }
  double pre(int64_t s, int64_t c, int64_t t) const {
    double sum = biased ? bias(0, c, 0) : 0;
    for (int64_t w = 0; w < W; ++w) sum += weight(0, c, w) * input(s, c, t - W + 1 + w);
    return sum;
  }
  double act(double v) const { return silu ? v / (1 + std::exp(-v)) : v; }
};

}  // namespace fulgurite
