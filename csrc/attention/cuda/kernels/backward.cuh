// What the kernels of the backward share: P and dS of the pairs of a tile.
//
//   P = exp(s − lse)    δ_i = Σ_d dO·O − g_lse    dP = dO·Vᵀ    dS = P∘(dP − δ)       softmax
//   P = a(s)                                      dP = dO·Vᵀ    dS = a'(s)∘dP         relu2, laplace
//
// Dropout multiplies P (in dV) and dP by its keep factors; softcap multiplies dS by 1 − tanh² on the way to the products. A query has
// a base, lse in powers of two for plain scores and in natural units else: +∞ where nothing is kept, so that P is 0. What lse was
// rounded by is an error of all the row's P; where bias or slopes make it large (rules/row_statistics.h) base is the maximum and
// `fine` log Σ exp(s − maximum), which is 0 elsewhere.
#pragma once

#include "attention/cuda/kernels/fma.cuh"
#include "attention/cuda/kernels/mma.cuh"
#include "attention/cuda/kernels/scores.cuh"

namespace fulgurite::cuda {

/// Widths of query and key and of value; what a warp has of the block's own rows, and kOthers rows of the other side in a tile, in
/// two stages.
template <class T_, class Lanes_, int kD_, int kDv_, int kWarps, int kOthers_>
struct BackwardTile {
  using T = T_;
  using Lanes = Lanes_;
  static constexpr int kD = kD_, kDv = kDv_, kOthers = kOthers_;
  static constexpr int kThreads = kWarps * 32, kWarpRows = Lanes::kWarpRows;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kOwn = kRows * (kD + kDv), kStage = kOthers * (kD + kDv);  // elements
  static constexpr int kTileBytes = (kOwn + 2 * kStage) * int{sizeof(T)};
  static constexpr int kBytes = kTileBytes + kWarps * Lanes::kScratchBytes;

  /// Own rows of width kD and of width kDv; the other side's of a stage; a warp's weights on their way to a product.
  class Shared {
   public:
    __device__ explicit Shared(unsigned char* bytes) : first_(reinterpret_cast<T*>(bytes)) {}
    __device__ SharedTile<T, kD> own() const { return {first_}; }
    __device__ SharedTile<T, kDv> own_values() const { return {first_ + kRows * kD}; }
    __device__ SharedTile<T, kD> others(int stage) const {
      return {first_ + kOwn + stage * kStage};
    }
    __device__ SharedTile<T, kDv> other_values(int stage) const {
      return {first_ + kOwn + stage * kStage + kOthers * kD};
    }
    __device__ T* scratch() const {
      return first_ + (kTileBytes + warp_of_block() * Lanes::kScratchBytes) / sizeof(T);
    }

   private:
    T* const first_;
  };
};

template <class T, int kD, int kDv, int kWarps, int kStrips, int kOthers>
using MmaBackward = BackwardTile<T, Mma<T, kStrips>, kD, kDv, kWarps, kOthers>;
template <int kD, int kRows, int kWarps, int kOthers>
using FmaBackward = BackwardTile<float, Fma<kRows, kOthers>, kD, kD, kWarps, kOthers>;

/// By whose base pairs are weighed.
template <class T, bool kPlain>
inline constexpr bool kInPowers = kPlain && sizeof(T) == 2;

/// What dS is made for: the products with Q and K, which the softcap stands before, or what is added to scores behind it.
enum class Through { kSoftcap, kScores };

/// What P and dS of a pair need of its query.
struct QueryStatistics {
  float base, fine, delta;
};

/// exp(s − lse): of a product for plain scores, else of a score.
template <class T, bool kPlain>
__device__ inline float probability(float s, float unit, const QueryStatistics& of) {
  if (kPlain) return cux::ex2(fmaf(s, unit, -of.base));
  const float x = (s - of.base) - of.fine;
  return sizeof(T) == 2 ? cux::ex2(x * kLog2E) : expf(x);
}

/// Products of a tile become P, times the keep factors, and those of dO and V become dS. Pairs is Pairs or KeyPairs.
template <class Tile, class Pairs, bool kPlain>
class PairGradients {
 public:
  using Sums = typename Pairs::Sums;

  __device__ PairGradients(const AttentionCudaParams& p, uint32_t b, uint32_t h,
                           Through through = Through::kSoftcap)
      : p_(p),
        b_(b),
        h_(h),
        capped_(!kPlain && p.softcap > 0 && through == Through::kSoftcap),
        unit_(static_cast<float>(p.scale) * kLog2E) {}

  /// statistics(k): of the query that a lane has as its row, or column, number k. Queries from i0 and keys from j0 on.
  template <class Statistics>
  __device__ void make(Sums& sums, Sums& grads, bool partial, int32_t i0, int32_t j0,
                       const DropoutRule& dropout, const Statistics& statistics) const {
    const HeadScores scores(p_, b_, h_);
    Sums slopes;
    if (capped_) scores.template softcap_slope<Pairs>(sums, slopes);
    if (!kPlain) scores.template score<Pairs>(sums, i0, j0);
    const auto keep = [&](int query, int four) {
      return keep_bits(dropout, b_, h_, i0 + query, j0 / 4 + four);
    };
    const auto kept_factor = static_cast<float>(dropout.inverse_keep);
    if (!kPlain && dropout.active) Pairs::drop(grads, kept_factor, keep);
    if (partial) {
      const typename Pairs::Kept kept(p_.rule, scores.block, i0, static_cast<int32_t>(p_.N), j0);
      const bool all = kept.all();
      if (!all) Pairs::hide(sums, kept, kHidden);
      weigh(sums, grads, statistics);
      if (!all) Pairs::hide(grads, kept, 0.f);  // also where dO or V is not finite
    } else {
      weigh(sums, grads, statistics);
    }
    if (!kPlain && dropout.active) Pairs::drop(sums, kept_factor, keep);
    if (capped_) multiply(grads, slopes);
  }

 private:
  template <class Statistics>
  __device__ void weigh(Sums& sums, Sums& grads, const Statistics& statistics) const {
    constexpr bool kRows = Pairs::kRowsAreQueries;
    constexpr int kQueries = kRows ? Pairs::kRowsOfLane : Pairs::kOfLane,
                  kKeys = kRows ? Pairs::kOfLane : Pairs::kRowsOfLane;
    CUX_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const QueryStatistics of = statistics(i);
      CUX_UNROLL
      for (int j = 0; j < kKeys; ++j) {
        const int n = kRows ? i : j, k = kRows ? j : i;
        weigh(Tile::Lanes::at(sums, n, k), Tile::Lanes::at(grads, n, k), of);
      }
    }
  }
  __device__ void weigh(float& s, float& grad, const QueryStatistics& of) const {
    if (kPlain || p_.score == ScoreKind::kSoftmax) {
      s = probability<typename Tile::T, kPlain>(s, unit_, of);
      grad = s * (grad - of.delta);
    } else {
      grad *= activation_slope<KernelMath>(p_.score, p_.score_scale, s);
      s = activation<KernelMath>(p_.score, p_.score_scale, s);
    }
  }
  __device__ static void multiply(Sums& grads, const Sums& slopes) {
    CUX_UNROLL
    for (int n = 0; n < Pairs::kRowsOfLane; ++n) {
      CUX_UNROLL
      for (int k = 0; k < Pairs::kOfLane; ++k) {
        float& grad = Tile::Lanes::at(grads, n, k);
        grad = grad == 0 ? 0 : grad * Tile::Lanes::at(slopes, n, k);  // 0 where hidden
      }
    }
  }

  const AttentionCudaParams& p_;
  const uint32_t b_, h_;
  const bool capped_;
  const float unit_;
};

}  // namespace fulgurite::cuda
