// A row of the forward once more, by one warp, when the fast loop left it not finite: 0·v is NaN where a hidden key's value is not
// finite, and here hidden pairs take no part. Also for rows whose scores are too far apart for the fast loop's sums.
//
// Order of sums: a score over the depth upwards; l over the keys of each lane, then over the lanes; o over the keys in order.
#pragma once

#include "attention/cuda/kernels/shared_tile.cuh"
#include "attention/cuda/kernels/softmax.cuh"

namespace fulgurite::cuda {

template <class T>
class CarefulRow {
 public:
  __device__ CarefulRow(const AttentionCudaParams& p, const HeadScores& scores, int64_t b,
                        int64_t h, int64_t i)
      : p_(p),
        scores_(scores),
        query_(head_rows<T>(p.query, b, h, p.N, p.D)),
        key_(head_rows<T>(p.key, b, h / p.group, p.M, p.D)),
        value_(head_rows<T>(p.value, b, h / p.group, p.M, p.Dv)),
        dropout_(dropout_of(p)),
        b_(b),
        h_(h),
        i_(i),
        lane_(static_cast<int>(lane_of_warp())) {}

  template <int kWidth>
  __device__ void write() const {
    const TileReach tiles(p_.rule, i_, i_ + 1, 32);
    const float sink = sink_of(p_, h_);
    const bool softmax = p_.score == ScoreKind::kSoftmax;
    float top = sink;
    for (int t = tiles.first(); softmax && t < tiles.end(); t = tiles.next(t))
      top = greater(top, score(int64_t{t} * 32 + lane_));
    for (int by = 16; by > 0; by /= 2) top = greater(top, __shfl_xor_sync(~0u, top, by));
    const float base = finite_base(top);

    float out[(kWidth + 31) / 32] = {},
                              sum = lane_ == 0 && sink != kHidden ? expf(sink - base) : 0.f;
    for (int t = tiles.first(); t < tiles.end(); t = tiles.next(t)) {
      const int64_t j0 = int64_t{t} * 32;
      const float s = score(j0 + lane_);
      float weight = softmax ? expf(s - base) : activation<KernelMath>(p_.score, p_.score_scale, s);
      sum += weight;
      if (dropout_.active)
        weight *= keep_bits(dropout_, b_, h_, i_, (j0 + lane_) / 4) >> lane_ % 4 & 1
                      ? static_cast<float>(dropout_.inverse_keep)
                      : 0.f;
      const uint32_t kept = __ballot_sync(~0u, s != kHidden);
      for (int c = 0; c < 32; ++c) {
        const float of_key = __shfl_sync(~0u, weight, c);
        if (kept >> c & 1) add(out, of_key, j0 + c);
      }
    }
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
    const float factor = softmax ? (sum == 0 ? 0.f : 1.f / sum) : 1.f;
    T* const to = static_cast<T*>(p_.out.data) + b_ * p_.out.strides[0] + h_ * p_.out.strides[1] +
                  i_ * p_.out.strides[2];
    for (int d = 0; d < (kWidth + 31) / 32; ++d)
      if (d * 32 + lane_ < p_.Dv) store_number(to + d * 32 + lane_, out[d] * factor);
    if (softmax && lane_ == 0)
      static_cast<float*>(
          p_.lse.data)[b_ * p_.lse.strides[0] + h_ * p_.lse.strides[1] + i_ * p_.lse.strides[2]] =
          lse_of<false>(base, sum);
  }

 private:
  /// The larger; NaN if either is.
  __device__ static float greater(float a, float b) { return a > b || a != a ? a : b; }

  /// Of key j, −inf if the pair is not kept.
  __device__ float score(int64_t j) const {
    const bool placed = scores_.block.reach(i_, j, 1).has(0);
    if (!placed || !scores_.block.kept_bits(i_, j, 1, 1)) return kHidden;
    const T* const query = query_.data + i_ * query_.row_stride;
    const T* const key = key_.data + j * key_.row_stride;
    float product = 0;
    for (int d = 0; d < key_.width; ++d)
      product = fmaf(number(query[d * query_.column_stride]), number(key[d * key_.column_stride]),
                     product);
    return scores_.score(product, i_, j);
  }

  template <int n>
  __device__ void add(float (&out)[n], float weight, int64_t j) const {
    const T* const value = value_.data + j * value_.row_stride;
    CUX_UNROLL
    for (int d = 0; d < n; ++d)
      if (d * 32 + lane_ < value_.width)
        out[d] = fmaf(weight, number(value[(d * 32 + lane_) * value_.column_stride]), out[d]);
  }

  const AttentionCudaParams& p_;
  const HeadScores& scores_;
  const HeadRows<T> query_, key_, value_;
  const DropoutRule dropout_;
  const int64_t b_, h_, i_;
  const int lane_;
};

}  // namespace fulgurite::cuda
