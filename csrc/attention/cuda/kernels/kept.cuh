// What a block works on, and which pairs of a warp's tile are kept, as words of bits spread over its lanes.
#pragma once

#include "attention/cuda/kernels/shared_tile.cuh"
#include "attention/rules/tile_scores.h"

namespace fulgurite::cuda {

inline constexpr float kHidden = -INFINITY;  // the score of a pair that is not kept

/// A block of query rows of one head.
struct QueryBlock {
  uint32_t b, h, key_head;
  int32_t i0;
};

/// Where reach differs from row to row the longest blocks of all heads come first; else a head's blocks lie side by side and share
/// its keys in the cache.
template <int kRows>
__device__ inline QueryBlock query_block(const AttentionCudaParams& p, uint32_t block) {
  const ScoreRule& rule = p.rule;
  const auto blocks = static_cast<uint32_t>((p.N + kRows - 1) / kRows),
             heads = static_cast<uint32_t>(p.Hq), all_heads = static_cast<uint32_t>(p.B) * heads;
  const bool last_is_longest = rule.causal || rule.window_right >= 0,
             differ = last_is_longest || rule.window_left >= 0;
  const uint32_t head = differ ? block % all_heads : block / blocks,
                 index = differ ? block / all_heads : block % blocks;
  return {head / heads, head % heads, head % heads / static_cast<uint32_t>(p.group),
          static_cast<int32_t>(last_is_longest ? blocks - 1 - index : index) * kRows};
}

/// The pairs of kRows rows of a warp with a tile of kColumns keys: word w of row r lies in lane (w·kRows + r) mod 32.
template <int kRows, int kColumns>
class KeptWords {
 public:
  /// Rows from i0 on, of which N − i0 exist; those beyond are as the last. Keys from j0 on.
  __device__ KeptWords(const ScoreRule& rule, const BlockScores& scores, int32_t i0, int32_t N,
                       int32_t j0) {
    const int lane = static_cast<int>(lane_of_warp());
    CUX_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const int at = (s * 32 + lane) % kAll, row = at % kRows, first = at / kRows * 32;
      const int i = i0 + row < N ? i0 + row : N - 1, left = static_cast<int>(rule.M) - j0 - first,
                count = left < 32 ? left : 32;
      slots_[s] =
          scores.placed_bits(i, j0 + first, count, scores.reach(i, j0, kColumns).bits(first));
    }
    if (scores.has_mask()) hide_masked(rule, scores, i0, N, j0);
  }

  __device__ bool any() const {
    uint32_t some = 0;
    CUX_UNROLL
    for (int s = 0; s < kSlots; ++s) some |= slots_[s];
    return __any_sync(~0u, some != 0);
  }
  __device__ bool all() const {
    uint32_t every = ~0u;
    CUX_UNROLL
    for (int s = 0; s < kSlots; ++s) every &= slots_[s];
    return __all_sync(~0u, every == ~0u);
  }
  /// Word w of row `first` + `further`; first is the same in all lanes and a multiple of a power of two above `further`.
  __device__ uint32_t word(int first, int further, int w) const {
    const int at = w * kRows + first;
    return __shfl_sync(~0u, slots_[at / 32], at % 32 + further);
  }

 private:
  static constexpr int kWords = kColumns / 32, kAll = kRows * kWords, kSlots = (kAll + 31) / 32;

  /// Lanes read the mask side by side, a row after the other; one row stands for all where they are the same.
  __device__ void hide_masked(const ScoreRule& rule, const BlockScores& scores, int32_t i0,
                              int32_t N, int32_t j0) {
    const int lane = static_cast<int>(lane_of_warp());
    const bool differ = scores.mask_differs_by_row();
    for (int row = 0; row < (differ ? kRows : 1); ++row) {
      const int i = i0 + row < N ? i0 + row : N - 1;
      CUX_UNROLL
      for (int w = 0; w < kWords; ++w) {
        const int j = j0 + w * 32 + lane;
        const uint32_t set = __ballot_sync(~0u, j < rule.M && scores.mask_keeps(i, j));
        CUX_UNROLL
        for (int s = 0; s < kSlots; ++s) {
          const int at = (s * 32 + lane) % kAll;
          const bool own = at / kRows == w && (!differ || at % kRows == row);
          slots_[s] &= own ? set : ~0u;
        }
      }
    }
  }

  uint32_t slots_[kSlots];
};

/// A warp's rows by kColumns keys, as they lie in the accumulators of Lanes (mma.cuh, fma.cuh).
template <class Lanes, int kColumns>
struct Pairs {
  static constexpr int kRowsOfLane = Lanes::kRowsOfLane;
  static constexpr int kOfLane = kColumns * Lanes::kWarpRows / 32 / kRowsOfLane;  // of each row
  using Sums = typename Lanes::template Sums<kColumns>;
  using Kept = KeptWords<Lanes::kWarpRows, kColumns>;

  /// Calls see(sum, row, column) for each of a lane's pairs.
  template <class See>
  __device__ static void visit(Sums& sums, const See& see) {
    CUX_UNROLL
    for (int n = 0; n < kRowsOfLane; ++n) {
      CUX_UNROLL
      for (int k = 0; k < kOfLane; ++k)
        see(Lanes::at(sums, n, k), Lanes::static_row(n) + Lanes::lane_row(),
            Lanes::static_column(k) + Lanes::lane_column());
    }
  }

  /// Pairs that are not kept become `hidden`.
  __device__ static void hide(Sums& sums, const Kept& kept, float hidden) {
    CUX_UNROLL
    for (int n = 0; n < kRowsOfLane; ++n) {
      uint32_t bits[kColumns / 32];
      CUX_UNROLL
      for (int w = 0; w < kColumns / 32; ++w)
        bits[w] = kept.word(Lanes::static_row(n), Lanes::lane_row(), w) >> Lanes::lane_column();
      CUX_UNROLL
      for (int k = 0; k < kOfLane; ++k) {
        const int column = Lanes::static_column(k);
        if (!(bits[column / 32] >> column % 32 & 1)) Lanes::at(sums, n, k) = hidden;
      }
    }
  }

  /// Multiplies by 0 or `kept`. bits(row, four) has the keep bits of four keys of the tile; the lanes that share them ask for one
  /// row each.
  template <class Bits>
  __device__ static void drop(Sums& sums, float kept, const Bits& bits) {
    constexpr int kSharers = Lanes::kSharers, kOfFour = Lanes::kOfFour;
    const int lane = static_cast<int>(lane_of_warp()), own = lane % kSharers;
    CUX_UNROLL
    for (int k = 0; k < kOfLane; k += kOfFour) {
      CUX_UNROLL
      for (int n = 0; n < kRowsOfLane; n += kSharers) {
        const uint32_t asked = bits(Lanes::static_row(n + own) + Lanes::lane_row(),
                                    (Lanes::static_column(k) + Lanes::lane_column()) / 4);
        CUX_UNROLL
        for (int s = 0; s < kSharers; ++s) {
          const uint32_t of_row = __shfl_sync(~0u, asked, lane - own + s);
          CUX_UNROLL
          for (int c = 0; c < kOfFour; ++c)
            Lanes::at(sums, n + s, k + c) *=
                of_row >> (Lanes::lane_column() % 4 + c) & 1 ? kept : 0.f;
        }
      }
    }
  }
};

}  // namespace fulgurite::cuda
