// From products to scores, and dropout, pair by pair: what is not asked for is a branch that all lanes take alike.
//
//   s = scale·q·k    s = softcap·tanh(s/softcap)    s = s + (bias − slope·|i' − j|)       in this order, in float32
#pragma once

#include "attention/cuda/kernels/kept.cuh"
#include "attention/rules/activations.h"

namespace fulgurite::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float number(float x) { return x; }
__device__ inline float number(BFloat16 x) {
  float low, high;
  cux::unpack2<BFloat16>(x.bits, low, high);
  return low;
}
__device__ inline float number(Half x) {
  float low, high;
  cux::unpack2<Half>(x.bits, low, high);
  return low;
}
__device__ inline void store_number(float* to, float x) { *to = x; }
template <class T>
__device__ inline void store_number(T* to, float x) {
  *to = T{static_cast<uint16_t>(cux::pack2<T>(x, 0.f))};
}

/// Math (common/value.h) of float32.
struct KernelMath {
  __device__ static float exp(float x) { return ::expf(x); }
  __device__ static float erf(float x) { return ::erff(x); }
  __device__ static float max(float a, float b) { return a > b ? a : b; }
};

__device__ inline float read_number(Dtype dtype, const void* data, int64_t at) {
  switch (dtype) {
    case Dtype::kBFloat16: return number(static_cast<const BFloat16*>(data)[at]);
    case Dtype::kFloat16: return number(static_cast<const Half*>(data)[at]);
    default: return static_cast<const float*>(data)[at];
  }
}

/// The rule of a call whose seed and offset lie on the card.
__device__ inline DropoutRule dropout_of(const AttentionCudaParams& p) {
  return p.dropout_p > 0 ? make_dropout_rule(p.dropout_p, p.philox, p.philox_words) : DropoutRule{};
}

/// The keep bits of keys 4·group … 4·group + 3.
__device__ inline uint32_t keep_bits(const DropoutRule& dropout, int64_t b, int64_t h, int64_t i,
                                     int64_t group) {
  uint64_t words[4];
  dropout.words(b, h, i, static_cast<uint64_t>(group), words);
  uint32_t bits = 0;
  CUX_UNROLL
  for (int k = 0; k < 4; ++k) bits |= static_cast<uint32_t>(words[k] >= dropout.threshold) << k;
  return bits;
}

/// Scores of one head.
class HeadScores {
 public:
  __device__ HeadScores(const AttentionCudaParams& p, int64_t b, int64_t h)
      : block(p.rule, b, h),
        p_(p),
        slope_(p.alibi_slopes
                   ? static_cast<const float*>(p.alibi_slopes)[b * p.alibi_batch_stride + h]
                   : 0.f) {}

  /// Of products that Pairs visits, rows from i0 and keys from j0 on. Beyond the last row and key stands the last one's bias.
  template <class Pairs>
  __device__ void score(typename Pairs::Sums& sums, int32_t i0, int32_t j0) const {
    const auto scale = static_cast<float>(p_.scale), cap = static_cast<float>(p_.softcap);
    Pairs::visit(sums, [&](float& s, int, int) { s *= scale; });
    if (cap > 0) Pairs::visit(sums, [&](float& s, int, int) { s = cap * ::tanhf(s / cap); });
    if (!has_addend()) return;
    const auto N = static_cast<int32_t>(p_.N), M = static_cast<int32_t>(p_.M);
    Pairs::visit(sums, [&](float& s, int row, int column) {
      s = added(s, i0 + row < N ? i0 + row : N - 1, j0 + column < M ? j0 + column : M - 1);
    });
  }

  /// Of one product.
  __device__ float score(float product, int64_t i, int64_t j) const {
    const auto scale = static_cast<float>(p_.scale), cap = static_cast<float>(p_.softcap);
    float s = product * scale;
    if (cap > 0) s = cap * ::tanhf(s / cap);
    return has_addend() ? added(s, i, j) : s;
  }

  const BlockScores block;

 private:
  __device__ bool has_addend() const { return p_.alibi_slopes || p_.rule.bias.data; }
  /// A bias of −inf hides the pair, whatever the product was.
  __device__ float added(float s, int64_t i, int64_t j) const {
    const ScorePlane& bias = block.bias();
    float addend = bias.data ? read_number(p_.rule.bias_dtype, bias.data, bias.at(i, j)) : 0.f;
    if (p_.alibi_slopes) {
      const int64_t center = i + p_.rule.shift;
      addend -= slope_ * static_cast<float>(j < center ? center - j : j - center);
    }
    return addend == kHidden ? kHidden : s + addend;
  }

  const AttentionCudaParams& p_;
  const float slope_;
};

}  // namespace fulgurite::cuda
