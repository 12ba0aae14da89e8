// Rows of gradients once more, by one warp: pairs that are not kept take no part, whatever stands in them (careful.cuh).
//
// Order of sums: a product over the depth upwards; a gradient over keys, or over heads of the group and queries, in order.
#pragma once

#include "attention/cuda/kernels/backward.cuh"
#include "attention/cuda/kernels/careful.cuh"

namespace fulgurite::cuda {

template <class T, bool kPlain>
class CarefulPairs : public HeadPairs<T> {
 public:
  __device__ CarefulPairs(const AttentionCudaBackward& p, int64_t b, int64_t h)
      : HeadPairs<T>(p, b, h),
        grad_out(head_rows<T>(p.grad_out, b, h, p.N, p.Dv)),
        p_(p),
        row0_((b * p.Hq + h) * p.N) {}

  struct Gradient {
    bool kept;
    float weight, grad;  // P and dS as they go into products
  };
  __device__ Gradient gradient(int64_t i, int64_t j) const {
    if (i >= p_.N) return {false, 0.f, 0.f};
    const float s = this->score(i, j);
    if (s == kHidden) return {false, 0.f, 0.f};
    constexpr float kLn2 = 0.69314718055994531f;
    const float base = p_.base[row0_ + i], fine = kPlain ? 0.f : p_.fine[row0_ + i];
    const float keep = this->keep_factor(i, j);
    float grad = grad_out.data ? dot(grad_out, i, this->value, j) : 0.f, weight = 0;
    if (p_.score == ScoreKind::kSoftmax) {
      weight = expf((s - (kPlain ? base * kLn2 : base)) - fine);
      grad = weight * (grad * keep - p_.delta[row0_ + i]);
    } else {
      weight = activation<KernelMath>(p_.score, p_.score_scale, s);
      grad *= activation_slope<KernelMath>(p_.score, p_.score_scale, s);
    }
    if (p_.softcap > 0) grad *= this->scores.softcap_slope(dot(this->query, i, this->key, j));
    return {true, weight * keep, grad};
  }

  const HeadRows<T> grad_out;

 private:
  const AttentionCudaBackward& p_;
  const int64_t row0_;
};

template <class T, bool kPlain, int kWidth>
__device__ inline void careful_query_row(const AttentionCudaBackward& p, int64_t b, int64_t h,
                                         int64_t i) {
  const CarefulPairs<T, kPlain> pairs(p, b, h);
  float out[(kWidth + 31) / 32] = {};
  const TileReach tiles(p.rule, i, i + 1, 32);
  for (int t = tiles.first(); t < tiles.end(); t = tiles.next(t)) {
    const int64_t j0 = int64_t{t} * 32;
    const auto own = pairs.gradient(i, j0 + lane_of_warp());
    const uint32_t kept = __ballot_sync(~0u, own.kept);
    for (int c = 0; c < 32; ++c) {
      const float grad = __shfl_sync(~0u, own.grad, c);
      if (kept >> c & 1) add_row(out, grad, pairs.key, j0 + c);
    }
  }
  put_row(out, static_cast<float>(p.scale), row_of<T>(p.grad_query, b, h, i), p.D);
}

/// A width of 0: that gradient is another launch's.
template <class T, bool kPlain, int kWidth, int kValueWidth>
__device__ inline void careful_key_row(const AttentionCudaBackward& p, int64_t b, int64_t key_head,
                                       int64_t j) {
  float grad_key[kWidth / 32 + 1] = {}, grad_value[kValueWidth / 32 + 1] = {};
  const TileRange tiles = QueryReach(p.rule, p.N, j, j + 1, 32).tiles();
  for (int64_t h = key_head * p.group; h < (key_head + 1) * p.group; ++h) {
    const CarefulPairs<T, kPlain> pairs(p, b, h);
    for (int t = tiles.begin; t < tiles.end; ++t) {
      const int64_t i0 = int64_t{t} * 32;
      const auto own = pairs.gradient(i0 + lane_of_warp(), j);
      const uint32_t kept = __ballot_sync(~0u, own.kept);
      for (int c = 0; c < 32; ++c) {
        const float grad = __shfl_sync(~0u, own.grad, c), weight = __shfl_sync(~0u, own.weight, c);
        if (!(kept >> c & 1)) continue;
        if (kWidth) add_row(grad_key, grad, pairs.query, i0 + c);
        if (kValueWidth && p.grad_out.data) add_row(grad_value, weight, pairs.grad_out, i0 + c);
      }
    }
  }
  if (kWidth && p.grad_key.data)
    put_row(grad_key, static_cast<float>(p.scale), row_of<T>(p.grad_key, b, key_head, j), p.D);
  if (kValueWidth && p.grad_value.data)
    put_row(grad_value, 1.f, row_of<T>(p.grad_value, b, key_head, j), p.Dv);
}

}  // namespace fulgurite::cuda
