// Softmax over the keys of a row, tile by tile.
//
//   m' = max(m, max_J s)    α = exp(m − m')    p = exp(s − m')    l = α·l + Σ_J p    o = α·o + Σ_J p·v
//
// m starts at −inf, or at the sink with l = 1. Plain scores of 16 bits count in powers of two: they are products times `unit` =
// scale·log2 e, by one fma, and m is the largest rounded down, so that its p is at least 1, for products of any size.
#pragma once

#include "attention/cuda/kernels/scores.cuh"

namespace fulgurite::cuda {

/// Of a lane's rows; the sums are those of the lane's own columns.
template <int kRows>
struct RowState {
  float base[kRows], sum[kRows];
};

__device__ inline float finite_base(float base) { return base == kHidden ? 0.f : base; }

/// The sink's logit, −inf for none.
__device__ inline float sink_of(const AttentionCudaParams& p, int64_t h) {
  return p.sink ? static_cast<const float*>(p.sink)[h] : kHidden;
}

/// Softmax with the accumulators of Lanes; T is what the weights become.
template <class T, class Lanes, bool kPlain>
struct Softmax {
  static constexpr int kRows = Lanes::kRowsOfLane;
  static_assert(!kPlain || sizeof(T) == 2);
  using State = RowState<kRows>;

  __device__ static State start(float sink) {
    State state;
    // One of the lanes of a row counts it.
    const bool counts = threadIdx.x % Lanes::kLanesOfRow == 0 && sink != kHidden;
    CUX_UNROLL
    for (int n = 0; n < kRows; ++n) {
      state.base[n] = kPlain ? sink * kLog2E : sink;
      state.sum[n] = counts ? 1.f : 0.f;
    }
    return state;
  }

  /// Scores of a tile become p; sums and outputs are brought to the new maxima. Most tiles raise none: all lanes see that.
  template <int kKeys, class Sums, class Outs>
  __device__ static void weigh(Sums& sums, float unit, State& state, Outs& outs) {
    constexpr int kOfLane = Pairs<Lanes, kKeys>::kOfLane;
    float factors[kRows];
    bool raised = false;
    CUX_UNROLL
    for (int n = 0; n < kRows; ++n) {
      float top = kHidden;
      CUX_UNROLL
      for (int k = 0; k < kOfLane; ++k) top = fmaxf(top, Lanes::at(sums, n, k));
      CUX_UNROLL
      for (int by = 1; by < Lanes::kLanesOfRow; by *= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, by));
      if (kPlain) top = fmaf(-fabsf(top * unit), 0x1p-23f, top * unit);
      const float before = state.base[n], now = fmaxf(before, top), base = finite_base(now);
      factors[n] = weight(before, base);
      raised |= now != before;
      state.base[n] = now;
      float part = 0.f;
      CUX_UNROLL
      for (int k = 0; k < kOfLane; ++k) {
        float& x = Lanes::at(sums, n, k);
        x = kPlain ? cux::ex2(fmaf(x, unit, -base)) : weight(x, base);
        part += x;
      }
      state.sum[n] = fmaf(state.sum[n], factors[n], part);
    }
    if (!__any_sync(~0u, raised)) return;
    constexpr int kOuts = sizeof(Outs) / sizeof(float) / kRows;
    CUX_UNROLL
    for (int n = 0; n < kRows; ++n) {
      CUX_UNROLL
      for (int k = 0; k < kOuts; ++k) Lanes::at(outs, n, k) *= factors[n];
    }
  }

  /// Over the lanes that share a row.
  __device__ static float whole_sum(float x) {
    CUX_UNROLL
    for (int by = 1; by < Lanes::kLanesOfRow; by *= 2) x += __shfl_xor_sync(~0u, x, by);
    return x;
  }

 private:
  /// As precise as T needs it.
  __device__ static float weight(float x, float base) {
    if (kPlain) return cux::ex2(x - base);
    return sizeof(T) == 2 ? cux::ex2((x - base) * kLog2E) : expf(x - base);
  }
};

/// log Σ exp of a row from its base and its whole sum; −inf where nothing is kept.
template <bool kPlain>
__device__ inline float lse_of(float base, float sum) {
  if (sum == 0) return kHidden;
  constexpr float kLn2 = 0.69314718055994531f;
  return fmaf(base, kPlain ? kLn2 : 1.f, logf(sum));
}

}  // namespace fulgurite::cuda
