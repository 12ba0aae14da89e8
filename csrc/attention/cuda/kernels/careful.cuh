// Rows once more, by one warp, when the fast loop left them not finite: 0·v is NaN where a hidden key's value is not finite, and
// here hidden pairs take no part. Also rows of the forward whose scores are too far apart for the fast loop's sums.
//
// Order of sums: a product over the depth upwards; l over the keys of each lane, then over the lanes; o over the keys in order.
#pragma once

#include "attention/cuda/kernels/shared_tile.cuh"
#include "attention/cuda/kernels/softmax.cuh"

namespace fulgurite::cuda {

/// Of a lane's rows those that hold something not finite, one bit each.
template <class Lanes, class Sums>
__device__ inline uint32_t broken_rows(const Sums& sums,
                                       const float (&factors)[Lanes::kRowsOfLane]) {
  constexpr int kOfLane = sizeof(Sums) / sizeof(float) / Lanes::kRowsOfLane;
  uint32_t broken = 0;
  CUX_UNROLL
  for (int n = 0; n < Lanes::kRowsOfLane; ++n) {
    float probe = 0;
    CUX_UNROLL
    for (int k = 0; k < kOfLane; ++k) probe = fmaf(Lanes::at(sums, n, k) * factors[n], 0.f, probe);
    broken |= static_cast<uint32_t>(probe != 0) << n;
  }
  return broken;
}

/// Calls mend(row of the warp), by the whole warp, for the rows that any lane has found broken, once they have been stored.
template <class Lanes, class Mend>
__device__ inline void mend_rows(uint32_t broken, const Mend& mend) {
  if (!__any_sync(~0u, broken != 0)) return;
  __syncwarp();
  for (int n = 0; n < Lanes::kRowsOfLane; ++n) {
    const uint32_t lanes = __ballot_sync(~0u, broken >> n & 1);
    for (int lane = 0; lane < 32; lane += Lanes::kLanesOfRow) {
      const int row = __shfl_sync(~0u, Lanes::static_row(n) + Lanes::lane_row(), lane);
      if (lanes >> lane & ((1u << Lanes::kLanesOfRow) - 1)) mend(row);
    }
  }
}

/// Σ a_d·b_d of two rows.
template <class T>
__device__ inline float dot(const HeadRows<T>& a, int64_t i, const HeadRows<T>& b, int64_t j) {
  const T *const x = a.data + i * a.row_stride, *const y = b.data + j * b.row_stride;
  float sum = 0;
  for (int d = 0; d < a.width; ++d)
    sum = fmaf(number(x[d * a.column_stride]), number(y[d * b.column_stride]), sum);
  return sum;
}

/// out[k] += weight·row j, column 32·k + lane.
template <class T, int n>
__device__ inline void add_row(float (&out)[n], float weight, const HeadRows<T>& rows, int64_t j) {
  const int lane = static_cast<int>(lane_of_warp());
  const T* const row = rows.data + j * rows.row_stride;
  CUX_UNROLL
  for (int k = 0; k < n; ++k)
    if (k * 32 + lane < rows.width)
      out[k] = fmaf(weight, number(row[(k * 32 + lane) * rows.column_stride]), out[k]);
}
/// factor·out to a row of `width` columns.
template <class T, int n>
__device__ inline void put_row(const float (&out)[n], float factor, T* row, int64_t width) {
  const int lane = static_cast<int>(lane_of_warp());
  for (int k = 0; k < n; ++k)
    if (k * 32 + lane < width) store_number(row + k * 32 + lane, out[k] * factor);
}

template <class T>
__device__ inline T* row_of(const Output4& t, int64_t b, int64_t h, int64_t i) {
  return static_cast<T*>(t.data) + b * t.strides[0] + h * t.strides[1] + i * t.strides[2];
}

/// The pairs of a head, one at a time.
template <class T>
class HeadPairs {
 public:
  __device__ HeadPairs(const AttentionCudaParams& p, int64_t b, int64_t h)
      : scores(p, b, h),
        query(head_rows<T>(p.query, b, h, p.N, p.D)),
        key(head_rows<T>(p.key, b, h / p.group, p.M, p.D)),
        value(head_rows<T>(p.value, b, h / p.group, p.M, p.Dv)),
        dropout(dropout_of(p)),
        p_(p),
        b_(b),
        h_(h) {}

  /// −inf if the pair is not kept.
  __device__ float score(int64_t i, int64_t j) const {
    const bool placed = scores.block.reach(i, j, 1).has(0);
    if (!placed || !scores.block.kept_bits(i, j, 1, 1)) return kHidden;
    return scores.score(dot(query, i, key, j), i, j);
  }
  __device__ float keep_factor(int64_t i, int64_t j) const {
    if (!dropout.active) return 1.f;
    return keep_bits(dropout, b_, h_, i, j / 4) >> j % 4 & 1
               ? static_cast<float>(dropout.inverse_keep)
               : 0.f;
  }
  /// The largest score of a row and of its sink, NaN if any is; the same in all lanes.
  __device__ float row_top(int64_t i) const {
    float top = sink_of(p_, h_);
    const TileReach tiles(p_.rule, i, i + 1, 32);
    for (int t = tiles.first(); t < tiles.end(); t = tiles.next(t))
      top = greater(top, score(i, int64_t{t} * 32 + lane_of_warp()));
    for (int by = 16; by > 0; by /= 2) top = greater(top, __shfl_xor_sync(~0u, top, by));
    return top;
  }
  /// Over the lanes of each one's part of a row's sum, in which lane 0 counts the sink.
  __device__ float with_sink(float sum, float base) const {
    const float sink = sink_of(p_, h_);
    if (lane_of_warp() == 0 && sink != kHidden) sum += expf(sink - base);
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
    return sum;
  }

  const HeadScores scores;
  const HeadRows<T> query, key, value;
  const DropoutRule dropout;

 private:
  __device__ static float greater(float a, float b) { return a > b || a != a ? a : b; }

  const AttentionCudaParams& p_;
  const int64_t b_, h_;
};

/// out and lse of row i.
template <class T, int kWidth>
__device__ inline void careful_forward_row(const AttentionCudaParams& p, int64_t b, int64_t h,
                                           int64_t i) {
  const HeadPairs<T> pairs(p, b, h);
  const bool softmax = p.score == ScoreKind::kSoftmax;
  const float base = softmax ? finite_base(pairs.row_top(i)) : 0.f;
  float out[(kWidth + 31) / 32] = {}, sum = 0;
  const TileReach tiles(p.rule, i, i + 1, 32);
  for (int t = tiles.first(); t < tiles.end(); t = tiles.next(t)) {
    const int64_t j0 = int64_t{t} * 32, j = j0 + lane_of_warp();
    const float s = pairs.score(i, j);
    float weight = softmax ? expf(s - base) : activation<KernelMath>(p.score, p.score_scale, s);
    sum += weight;
    weight *= pairs.keep_factor(i, j);
    const uint32_t kept = __ballot_sync(~0u, s != kHidden);
    for (int c = 0; c < 32; ++c) {
      const float of_key = __shfl_sync(~0u, weight, c);
      if (kept >> c & 1) add_row(out, of_key, pairs.value, j0 + c);
    }
  }
  sum = pairs.with_sink(sum, base);
  put_row(out, !softmax ? 1.f : sum == 0 ? 0.f : 1.f / sum, row_of<T>(p.out, b, h, i), p.Dv);
  if (softmax && lane_of_warp() == 0) *row_of<float>(p.lse, b, h, i) = lse_of<false>(base, sum);
}

}  // namespace fulgurite::cuda
