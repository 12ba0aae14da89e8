// Which pairs of query i and key j are kept: the one definition that forward, backward and every tile decision use,
// on host and device.
//
//   kept iff  mask_ij  and  (not causal or j ≤ i')  and  (window_left < 0 or i' − window_left ≤ j)
//                      and  (window_right < 0 or j ≤ i' + window_right)          i' = i + shift
//
// shift is M − N for align "bottom_right" and 0 for "top_left". Without the mask, the keys of a query are one range
// [begin, end) whose two ends rise with i.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FULGURITE_HOST_DEVICE __host__ __device__
#else
// Kernels of every instruction set include this file: a copy left to the linker could be that of a newer machine.
#define FULGURITE_HOST_DEVICE __attribute__((always_inline))
#endif

namespace fulgurite {

enum class TileState { kSkip, kPartial, kFull };

struct KeyRange {
  int64_t begin, end;
};

struct ScoreRule {
  int64_t M;
  int64_t shift;
  bool causal;
  int64_t window_left, window_right;  // < 0: no bound; at most N + M, so that sums cannot overflow
  const bool* mask;                   // null: every pair
  int64_t mask_batches;               // batch b uses mask b mod mask_batches
  int64_t mask_strides[4];            // b, h, i, j; 0 where it broadcasts

  /// The keys in reach of query i, by causality and window.
  FULGURITE_HOST_DEVICE KeyRange keys(int64_t i) const {
    const int64_t center = i + shift;
    int64_t begin = window_left < 0 ? 0 : center - window_left;
    int64_t end = M;
    if (causal && center + 1 < end) end = center + 1;
    if (window_right >= 0 && center + window_right + 1 < end) end = center + window_right + 1;
    if (begin < 0) begin = 0;
    if (begin > M) begin = M;
    return {begin, end < begin ? begin : end};
  }
  /// The keys in reach of any query in [i0, i1).
  FULGURITE_HOST_DEVICE KeyRange keys(int64_t i0, int64_t i1) const {
    const int64_t begin = keys(i0).begin, end = keys(i1 - 1).end;
    return {begin, end < begin ? begin : end};
  }

  FULGURITE_HOST_DEVICE const bool* mask_row(int64_t b, int64_t h, int64_t i) const {
    return mask + b % mask_batches * mask_strides[0] + h * mask_strides[1] + i * mask_strides[2];
  }

  FULGURITE_HOST_DEVICE bool kept(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const KeyRange range = keys(i);
    return j >= range.begin && j < range.end && (!mask || mask_row(b, h, i)[j * mask_strides[3]]);
  }

  /// kSkip if no pair of the tile [i0, i1) × [j0, j1) is kept, kFull if all are, else kPartial.
  FULGURITE_HOST_DEVICE TileState state(int64_t b, int64_t h, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const KeyRange reach = keys(i0, i1);
    if (j1 <= reach.begin || j0 >= reach.end) return TileState::kSkip;
    const bool inside = j0 >= keys(i1 - 1).begin && j1 <= keys(i0).end;
    if (!mask) return inside ? TileState::kFull : TileState::kPartial;
    bool any = false, all = true;
    for (int64_t i = i0; i < i1; ++i) {
      const bool* const row = mask_row(b, h, i);
      for (int64_t j = j0; j < j1; ++j) {
        any |= row[j * mask_strides[3]];
        all &= row[j * mask_strides[3]];
      }
    }
    if (!any) return TileState::kSkip;
    return all && inside ? TileState::kFull : TileState::kPartial;
  }
};

}  // namespace fulgurite
