// The backward's first kernel: of each row of queries its base and δ (backward.cuh).
//
// Reads:         grad_out, out, lse and its gradient, once; of rows whose lse is coarse what makes their scores
// Writes:        base, fine and delta
// Task:          eight lanes are a row
// Order of sums: over each lane's chunks of eight elements upwards, then over the lanes
#pragma once

#include "attention/cuda/kernels/backward.cuh"
#include "attention/cuda/kernels/careful.cuh"
#include "attention/rules/row_statistics.h"

namespace fulgurite::cuda {

inline constexpr int kDeltaThreads = 128, kDeltaLanes = 8, kDeltaRows = kDeltaThreads / kDeltaLanes;

/// Σ a·b over the lane's chunks of a row.
template <class T>
__device__ inline float dot_of_lane(const T* a, int64_t a_stride, const T* b, int width,
                                    bool wide) {
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x % kDeltaLanes);
  float sum = 0;
  for (int d = lane * kPerChunk; d < width; d += kDeltaLanes * kPerChunk) {
    T as[kPerChunk], bs[kPerChunk];
    if (wide) {
      const cux::Words<4> a_words = cux::load_global16(a + d), b_words = cux::load_global16(b + d);
      __builtin_memcpy(as, &a_words, 16);
      __builtin_memcpy(bs, &b_words, 16);
    } else {
      CUX_UNROLL
      for (int e = 0; e < kPerChunk; ++e) {
        as[e] = d + e < width ? a[(d + e) * a_stride] : T{};
        bs[e] = d + e < width ? b[d + e] : T{};
      }
    }
    CUX_UNROLL
    for (int e = 0; e < kPerChunk; ++e) sum = fmaf(number(as[e]), number(bs[e]), sum);
  }
  return sum;
}

struct RowBase {
  float base, fine;
};

/// Of a row whose lse is too coarse: its maximum and log Σ exp(s − maximum), by the whole warp.
template <class T>
__device__ inline RowBase normalised(const AttentionCudaBackward& p, int64_t row) {
  const int64_t i = row % p.N;
  const HeadPairs<T> pairs(p, row / p.N / p.Hq, row / p.N % p.Hq);
  const float base = finite_base(pairs.row_top(i));
  float sum = 0;
  const TileReach tiles(p.rule, i, i + 1, 32);
  for (int t = tiles.first(); t < tiles.end(); t = tiles.next(t))
    sum += expf(pairs.score(i, int64_t{t} * 32 + lane_of_warp()) - base);
  return {base, logf(pairs.with_sink(sum, base))};
}

template <class T, bool kPowers>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta(const __grid_constant__ AttentionCudaBackward p) {
  const int64_t rows = p.B * p.Hq * p.N,
                at = int64_t{blockIdx.x} * kDeltaRows + threadIdx.x / kDeltaLanes;
  const int64_t row = at < rows ? at : rows - 1;
  const int64_t i = row % p.N, h = row / p.N % p.Hq, b = row / p.N / p.Hq;
  float sum = 0;
  if (p.grad_out.data) {
    const HeadRows<T> grad = head_rows<T>(p.grad_out, b, h, p.N, p.Dv);
    sum = dot_of_lane(grad.data + i * grad.row_stride, grad.column_stride,
                      row_of<const T>(p.out, b, h, i), grad.width, p.wide);
  }
  for (int by = kDeltaLanes / 2; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  const float lse = *row_of<const float>(p.lse, b, h, i);
  if (p.grad_lse.data)
    sum -= *(head_rows<float>(p.grad_lse, b, h, p.N, 1).data + i * p.grad_lse.strides[2]);
  const bool softmax = p.score == ScoreKind::kSoftmax, empty = softmax && lse == kHidden;
  RowBase of{!softmax ? 0.f : empty ? INFINITY : kPowers ? lse * kLog2E : lse, 0.f};
  if constexpr (!kPowers) {
    const uint32_t coarse = __ballot_sync(~0u, softmax && lse_is_coarse(lse, p.dtype));
    for (int lane = 0; coarse && lane < 32; lane += kDeltaLanes) {
      const int64_t its_row = __shfl_sync(~0u, row, lane);
      if (!(coarse >> lane & 1)) continue;
      const RowBase apart = normalised<T>(p, its_row);
      if (static_cast<int>(lane_of_warp()) / kDeltaLanes == lane / kDeltaLanes) of = apart;
    }
  }
  if (threadIdx.x % kDeltaLanes || at >= rows) return;
  p.base[row] = of.base;
  if (!kPowers) p.fine[row] = of.fine;
  p.delta[row] = empty || !softmax ? 0.f : sum;
}

/// dsink_h = −Σ exp(sink − lse)·δ: a block is a head; its threads take rows in turn and are added as a tree.
///
/// Reads:         base and delta
/// Writes:        grad_sink
/// Order of sums: over each thread's rows upwards, over lanes, over warps
template <bool kPowers>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_grad_sink(const __grid_constant__ AttentionCudaBackward p) {
  CUX_SHARED(float, warps, kDeltaThreads / 32);
  const int64_t h = blockIdx.x;
  const float sink = static_cast<const float*>(p.sink)[h];
  float sum = 0;
  for (int64_t at = threadIdx.x; at < p.B * p.N; at += kDeltaThreads) {
    const int64_t row = (at / p.N * p.Hq + h) * p.N + at % p.N;
    const float lse = kPowers ? p.base[row] * 0.69314718055994531f : p.base[row] + p.fine[row];
    sum = fmaf(-expf(sink - lse), p.delta[row], sum);
  }
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  if (lane_of_warp() == 0) warps[warp_of_block()] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < kDeltaThreads / 32; ++w) sum += warps[w];
  p.grad_sink[h] = sum;
}

template <class T, bool kPowers>
cux::Error launch_delta(const AttentionCudaBackward& p, cux::Stream stream) {
  const int64_t blocks = (p.B * p.Hq * p.N + kDeltaRows - 1) / kDeltaRows;
  return cux::launch(attention_delta<T, kPowers>, dim3(static_cast<unsigned>(blocks)),
                     dim3(kDeltaThreads), 0, stream, p);
}
template <bool kPowers>
cux::Error launch_grad_sink(const AttentionCudaBackward& p, cux::Stream stream) {
  return cux::launch(attention_grad_sink<kPowers>, dim3(static_cast<unsigned>(p.Hq)),
                     dim3(kDeltaThreads), 0, stream, p);
}

}  // namespace fulgurite::cuda
