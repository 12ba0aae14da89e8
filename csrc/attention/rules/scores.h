// Which pairs of query i and key j are kept: the one definition that forward, backward and every tile decision use, on host
// and device.
//
//   kept iff  mask_ij  and  block_layout[h, i//bs, j//bs]  and  bias_ij ≠ −inf  and  (not causal or j ≤ i')
//      and (((window_left < 0 or i' − window_left ≤ j) and (window_right < 0 or j ≤ i' + window_right)) or j < sink_tokens)
//      and (chunk_size = 0 or ⌊i'/chunk_size⌋ = ⌊j/chunk_size⌋)                 i' = i + shift
//
// shift is M − N for align "bottom_right" and 0 for "top_left". By position alone the keys of a query are at most two
// ranges, the sink tokens and the window; their ends rise with i.
#pragma once

#include <cstdint>

#include "attention/rules/choices.h"
#include "common/host_device.h"
#include "common/philox.h"
#include "simd/types.h"

namespace fulgurite {

enum class TileState { kSkip, kPartial, kFull };

struct KeyRange {
  int64_t begin, end;
  FULGURITE_HOST_DEVICE bool has(int64_t j) const { return j >= begin && j < end; }
  FULGURITE_HOST_DEVICE bool covers(int64_t j0, int64_t j1) const {
    return j0 >= begin && j1 <= end;
  }
  FULGURITE_HOST_DEVICE bool meets(int64_t j0, int64_t j1) const {
    return begin < end && j1 > begin && j0 < end;
  }
  FULGURITE_HOST_DEVICE bool inside(int64_t j0, int64_t j1) const {
    return begin >= end || (begin >= j0 && end <= j1);
  }
};

struct KeyReach {
  KeyRange sinks, window;
  FULGURITE_HOST_DEVICE bool has(int64_t j) const { return sinks.has(j) || window.has(j); }
  FULGURITE_HOST_DEVICE bool meets(int64_t j0, int64_t j1) const {
    return sinks.meets(j0, j1) || window.meets(j0, j1);
  }
  /// The smallest range of [j0, j1) that holds what is in reach there; {j1, j0} if nothing is.
  FULGURITE_HOST_DEVICE KeyRange hull(int64_t j0, int64_t j1) const {
    KeyRange h{j1, j0};
    const KeyRange ranges[] = {sinks, window};
    for (const KeyRange& range : ranges) {
      const int64_t begin = range.begin > j0 ? range.begin : j0,
                    end = range.end < j1 ? range.end : j1;
      if (begin >= end) continue;
      h.begin = begin < h.begin ? begin : h.begin;
      h.end = end > h.end ? end : h.end;
    }
    return h;
  }
  /// No key outside [j0, j1) is in reach.
  FULGURITE_HOST_DEVICE bool within(int64_t j0, int64_t j1) const {
    return sinks.inside(j0, j1) && window.inside(j0, j1);
  }
};

/// A tensor that broadcasts to the scores (B,Hq,N,M): strides in elements, 0 where it broadcasts; batch b reads b mod batches.
struct ScoreTensor {
  const void* data;  // null: not given
  int64_t batches;
  int64_t strides[4];

  FULGURITE_HOST_DEVICE int64_t offset(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return b % batches * strides[0] + h * strides[1] + i * strides[2] + j * strides[3];
  }
};

/// Element `at` is −inf, by its bits.
FULGURITE_HOST_DEVICE bool is_minus_infinity(Dtype dtype, const void* data, int64_t at) {
  switch (dtype) {
    case Dtype::kFloat64: return static_cast<const uint64_t*>(data)[at] == 0xfff0000000000000u;
    case Dtype::kFloat32: return static_cast<const uint32_t*>(data)[at] == 0xff800000u;
    case Dtype::kBFloat16: return static_cast<const uint16_t*>(data)[at] == 0xff80u;
    case Dtype::kFloat16: return static_cast<const uint16_t*>(data)[at] == 0xfc00u;
  }
  return false;
}

struct ScoreRule {
  int64_t M;  // keys of the sequence
  int64_t shift;
  bool causal;
  int64_t window_left, window_right;  // < 0: no bound; at most N + M, so that sums cannot overflow
  int64_t sink_tokens, chunk_size;
  ScoreTensor mask;    // bool
  ScoreTensor layout;  // bool or uint8, strides over blocks
  int64_t block_size;
  ScoreTensor bias;
  Dtype bias_dtype;

  /// The keys in reach of query i by position.
  FULGURITE_HOST_DEVICE KeyReach reach(int64_t i) const {
    const int64_t center = i + shift;
    int64_t low = 0, high = M;
    if (causal && center + 1 < high) high = center + 1;
    if (chunk_size > 0) {
      const int64_t chunk =
          (center >= 0 ? center / chunk_size : -((-center + chunk_size - 1) / chunk_size)) *
          chunk_size;
      if (chunk > low) low = chunk;
      if (chunk + chunk_size < high) high = chunk + chunk_size;
    }
    int64_t first = low, last = high;
    if (window_left >= 0 && center - window_left > first) first = center - window_left;
    if (window_right >= 0 && center + window_right + 1 < last) last = center + window_right + 1;
    return {clamp(low, sink_tokens < high ? sink_tokens : high), clamp(first, last)};
  }
  /// The smallest ranges that hold the keys of every query in [i0, i1).
  FULGURITE_HOST_DEVICE KeyReach reach(int64_t i0, int64_t i1) const {
    const KeyReach first = reach(i0), last = reach(i1 - 1);
    return {{first.sinks.begin, last.sinks.end}, {first.window.begin, last.window.end}};
  }

  FULGURITE_HOST_DEVICE bool kept(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return reach(i).has(j) && in_layout(b, h, i, j) &&
           (!mask.data || static_cast<const bool*>(mask.data)[mask.offset(b, h, i, j)]) &&
           !(bias.data && is_minus_infinity(bias_dtype, bias.data, bias.offset(b, h, i, j)));
  }

  /// Every key of [j0, j1) is in reach of every query of [i0, i1).
  FULGURITE_HOST_DEVICE bool all_in_reach(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const KeyReach first = reach(i0), last = reach(i1 - 1);
    return (first.window.covers(j0, j1) && last.window.covers(j0, j1)) ||
           (first.sinks.covers(j0, j1) && last.sinks.covers(j0, j1));
  }

  /// kSkip if no pair of the tile [i0, i1) × [j0, j1) is kept by position, layout and mask; kFull if all are; else kPartial.
  FULGURITE_HOST_DEVICE TileState state(int64_t b, int64_t h, int64_t i0, int64_t i1, int64_t j0,
                                        int64_t j1) const {
    if (!reach(i0, i1).meets(j0, j1)) return TileState::kSkip;
    bool all = all_in_reach(i0, i1, j0, j1);
    all &= !bias.data;  // a bias may hide any pair
    if (layout.data) {
      const TileState blocks = scan(layout, b, h, i0 / block_size, (i1 - 1) / block_size + 1,
                                    j0 / block_size, (j1 - 1) / block_size + 1);
      if (blocks == TileState::kSkip) return blocks;
      all &= blocks == TileState::kFull;
    }
    if (mask.data) {
      const TileState pairs = scan(mask, b, h, i0, i1, j0, j1);
      if (pairs == TileState::kSkip) return pairs;
      all &= pairs == TileState::kFull;
    }
    return all ? TileState::kFull : TileState::kPartial;
  }

  FULGURITE_HOST_DEVICE bool in_layout(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return !layout.data ||
           static_cast<const uint8_t*>(
               layout.data)[layout.offset(b, h, i / block_size, j / block_size)] != 0;
  }

 private:
  FULGURITE_HOST_DEVICE KeyRange clamp(int64_t begin, int64_t end) const {
    if (begin < 0) begin = 0;
    if (begin > M) begin = M;
    if (end > M) end = M;
    return {begin, end < begin ? begin : end};
  }

  FULGURITE_HOST_DEVICE static TileState scan(const ScoreTensor& t, int64_t b, int64_t h,
                                              int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    bool any = false, all = true;
    for (int64_t i = i0; i < i1; ++i) {
      const uint8_t* const row = static_cast<const uint8_t*>(t.data) + t.offset(b, h, i, 0);
      for (int64_t j = j0; j < j1; ++j) {
        any |= row[j * t.strides[3]] != 0;
        all &= row[j * t.strides[3]] != 0;
      }
    }
    return all ? TileState::kFull : any ? TileState::kPartial : TileState::kSkip;
  }
};

/// Keep bits of dropout: a function of seed, offset and the pair's own indices b, h, i and j, of nothing else. Each index has
/// a word of the counter (j // 4, i, b, h) of its own; seed and offset, 64 bits each, make the key (philox_stream). Word j mod 4
/// is key j's.
struct DropoutRule {
  bool active;
  PhiloxKey key;
  uint32_t first_batch,
      first_head;       // of the whole that the call's batch entries and heads are a part of
  uint32_t threshold;   // dropped iff the word is below: p·2³²
  double inverse_keep;  // 1/(1 − p)

  /// Words of the keys 4·group … 4·group + 3 of query i; `group` may be a vector of groups.
  template <class U>
  FULGURITE_HOST_DEVICE void words(int64_t b, int64_t h, int64_t i, U group, U (&out)[4]) const {
    out[0] = group;
    out[1] = group * 0 + static_cast<uint64_t>(static_cast<uint32_t>(i));
    out[2] = group * 0 + static_cast<uint64_t>(first_batch + static_cast<uint32_t>(b));
    out[3] = group * 0 + static_cast<uint64_t>(first_head + static_cast<uint32_t>(h));
    philox4x32(out[0], out[1], out[2], out[3], key);
  }
};

/// philox: `words` of them, [seed, offset] or [seed, offset, first batch index, first head].
FULGURITE_HOST_DEVICE DropoutRule make_dropout_rule(double p, const int64_t* philox,
                                                    int64_t words) {
  DropoutRule d{};
  d.active = p > 0;
  if (!d.active) return d;
  d.key = philox_stream(static_cast<uint64_t>(philox[0]), static_cast<uint64_t>(philox[1]));
  if (words == 4) {
    d.first_batch = static_cast<uint32_t>(philox[2]);
    d.first_head = static_cast<uint32_t>(philox[3]);
  }
  const double threshold = p * 0x1p32;
  d.threshold =
      threshold < 0x1p32 - 1 ? static_cast<uint32_t>(threshold) : static_cast<uint32_t>(0x1p32 - 1);
  d.inverse_keep = 1.0 / (1.0 - p);
  return d;
}

}  // namespace fulgurite
