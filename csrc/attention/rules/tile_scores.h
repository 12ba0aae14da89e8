// The rule of scores.h as inner loops ask it. What a block, a row or a tile has in common is worked out once for it, and 32
// pairs of a row are a word of bits. kept() has divisions and 64-bit products for each pair, state() goes through a mask alone;
// on a GPU neither may stand in a loop over pairs.
//
//   once per block     BlockScores: mask, layout and bias of one batch entry and head; TileReach: tiles by position
//   once per row       BlockScores::reach: the columns of the tile that are in reach, as 32-bit ranges
//   32 pairs of a row  BlockScores::kept_bits; the layout is looked up once per layout block that they meet. Where lanes read
//                      mask and bias side by side: placed_bits and mask_keeps
//   once per tile      outline(), and what every lane saw of the mask (mask_seen), put together by tile_state()
#pragma once

#include "attention/rules/scores.h"

namespace fulgurite {

/// Bits [begin, end) of a word; both may lie outside it.
FULGURITE_HOST_DEVICE uint32_t bits_between(int32_t begin, int32_t end) {
  const auto below = [](int32_t n) { return n <= 0 ? 0u : n >= 32 ? ~0u : (1u << n) - 1; };
  return below(end) & ~below(begin);
}

/// The columns of a tile that a query has in reach by position; a tile is narrower than 2³⁰.
struct RowReach {
  int32_t sinks_begin, sinks_end, window_begin, window_end;

  FULGURITE_HOST_DEVICE bool has(int32_t column) const {
    return (column >= sinks_begin && column < sinks_end) ||
           (column >= window_begin && column < window_end);
  }
  /// Of the columns from `first` on.
  FULGURITE_HOST_DEVICE uint32_t bits(int32_t first) const {
    return bits_between(sinks_begin - first, sinks_end - first) |
           bits_between(window_begin - first, window_end - first);
  }
};

/// Numbers of tiles [begin, end).
struct TileRange {
  int32_t begin, end;
  FULGURITE_HOST_DEVICE bool has(int32_t t) const { return t >= begin && t < end; }
};

/// The tiles of `columns` keys, counted from key 0 on, that queries [i0, i1) have in reach by position. They are visited by
///   for (t = first(); t < end(); t = next(t))
class TileReach {
 public:
  TileReach() = default;  // for shared memory
  FULGURITE_HOST_DEVICE TileReach(const ScoreRule& rule, int64_t i0, int64_t i1, int32_t columns) {
    const KeyReach first = rule.reach(i0), last = rule.reach(i1 - 1);
    const KeyRange sinks{first.sinks.begin, last.sinks.end};
    const bool has_sinks = sinks.begin < sinks.end;
    sinks_end_ = has_sinks ? tile_after(sinks.end, columns) : 0;
    window_ = {static_cast<int32_t>(first.window.begin / columns),
               tile_after(last.window.end, columns)};
    if (first.window.begin >= last.window.end) window_ = {sinks_end_, sinks_end_};
    first_ = has_sinks ? static_cast<int32_t>(sinks.begin / columns) : window_.begin;
    full_ = {tile_after(last.window.begin, columns),
             static_cast<int32_t>(first.window.end / columns)};
  }

  FULGURITE_HOST_DEVICE int32_t first() const { return first_; }
  FULGURITE_HOST_DEVICE int32_t end() const {
    return sinks_end_ > window_.end ? sinks_end_ : window_.end;
  }
  FULGURITE_HOST_DEVICE int32_t next(int32_t t) const {
    return t + 1 >= sinks_end_ && t + 1 < window_.begin ? window_.begin : t + 1;
  }
  /// Of a tile from first() on: kFull where all its pairs are in their rows' windows; a tile that goes beyond the last key
  /// never is. Few tiles hold sinks, so that those are kPartial costs little.
  FULGURITE_HOST_DEVICE TileState state(int32_t t) const {
    if (full_.has(t)) return TileState::kFull;
    return window_.has(t) || t < sinks_end_ ? TileState::kPartial : TileState::kSkip;
  }

 private:
  FULGURITE_HOST_DEVICE static int32_t tile_after(int64_t key, int32_t columns) {
    return static_cast<int32_t>((key + columns - 1) / columns);
  }

  int32_t first_, sinks_end_;
  TileRange window_, full_;
};

/// A ScoreTensor of one batch entry and head.
struct ScorePlane {
  const void* data;  // null: not given
  int64_t base, row_stride, column_stride;

  FULGURITE_HOST_DEVICE int64_t at(int64_t row, int64_t column) const {
    return base + row * row_stride + column * column_stride;
  }
  FULGURITE_HOST_DEVICE bool is_set(int64_t row, int64_t column) const {
    return static_cast<const uint8_t*>(data)[at(row, column)] != 0;
  }
};

FULGURITE_HOST_DEVICE ScorePlane plane_of(const ScoreTensor& t, int64_t b, int64_t h) {
  if (!t.data) return {nullptr, 0, 0, 0};
  return {t.data, t.offset(b, h, 0, 0), t.strides[2], t.strides[3]};
}

/// Whether any, and whether all, of some pairs are set.
struct Seen {
  bool any, all;
};

/// What is known of a tile from its outline and from what all lanes saw of its mask.
FULGURITE_HOST_DEVICE TileState tile_state(TileState outline, Seen mask) {
  if (outline == TileState::kSkip || !mask.any) return TileState::kSkip;
  return mask.all ? outline : TileState::kPartial;
}

class BlockScores {
 public:
  FULGURITE_HOST_DEVICE BlockScores(const ScoreRule& rule, int64_t b, int64_t h)
      : rule_(rule),
        mask_(plane_of(rule.mask, b, h)),
        layout_(plane_of(rule.layout, b, h)),
        bias_(plane_of(rule.bias, b, h)) {}

  /// Of query i in the tile of `columns` keys from j0 on.
  FULGURITE_HOST_DEVICE RowReach reach(int64_t i, int64_t j0, int32_t columns) const {
    const KeyReach keys = rule_.reach(i);
    const auto column = [&](int64_t j) {
      return static_cast<int32_t>(j <= j0 ? 0 : j - j0 >= columns ? columns : j - j0);
    };
    return {column(keys.sinks.begin), column(keys.sinks.end), column(keys.window.begin),
            column(keys.window.end)};
  }

  /// Bit c, c < count ≤ 32: the pair (i, j + c) is kept by position and layout. `reach`: those of its columns that are in
  /// reach.
  FULGURITE_HOST_DEVICE uint32_t placed_bits(int64_t i, int64_t j, int32_t count,
                                             uint32_t reach) const {
    const uint32_t placed = reach & bits_between(0, count);
    return layout_.data && placed ? placed & layout_bits(i, j, count) : placed;
  }
  FULGURITE_HOST_DEVICE bool has_mask() const { return mask_.data; }
  FULGURITE_HOST_DEVICE bool mask_differs_by_row() const { return mask_.row_stride != 0; }
  FULGURITE_HOST_DEVICE bool mask_keeps(int64_t i, int64_t j) const { return mask_.is_set(i, j); }
  FULGURITE_HOST_DEVICE const ScorePlane& bias() const { return bias_; }

  /// Bit c: the pair (i, j + c) is kept.
  FULGURITE_HOST_DEVICE uint32_t kept_bits(int64_t i, int64_t j, int32_t count,
                                           uint32_t reach) const {
    uint32_t kept = placed_bits(i, j, count, reach);
    if (mask_.data)
      for (int32_t c = 0; c < count; ++c)
        if (kept >> c & 1 && !mask_.is_set(i, j + c)) kept &= ~(1u << c);
    if (bias_.data)
      for (int32_t c = 0; c < count; ++c)
        if (kept >> c & 1 && is_minus_infinity(rule_.bias_dtype, bias_.data, bias_.at(i, j + c)))
          kept &= ~(1u << c);
    return kept;
  }

  /// ScoreRule::state of the tile [i0, i1) × [j0, j1) but for its mask.
  FULGURITE_HOST_DEVICE TileState outline(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    if (!rule_.reach(i0, i1).meets(j0, j1)) return TileState::kSkip;
    const TileState inside =
        rule_.all_in_reach(i0, i1, j0, j1) && !bias_.data ? TileState::kFull : TileState::kPartial;
    return tile_state(inside, layout_seen(i0, i1, j0, j1, 0, 1));
  }

  /// What lane `lane` of `lanes` sees of the layout's blocks that the tile meets.
  FULGURITE_HOST_DEVICE Seen layout_seen(int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                                         int32_t lane, int32_t lanes) const {
    if (!layout_.data) return {true, true};
    const int64_t size = rule_.block_size;
    return seen(layout_, i0 / size, (i1 - 1) / size + 1, j0 / size, (j1 - 1) / size + 1, lane,
                lanes);
  }

  /// What lane `lane` of `lanes` sees of the tile's mask: pair number lane, lane + lanes, … row by row.
  FULGURITE_HOST_DEVICE Seen mask_seen(int64_t i0, int64_t i1, int64_t j0, int64_t j1, int32_t lane,
                                       int32_t lanes) const {
    if (!mask_.data) return {true, true};
    return seen(mask_, i0, i1, j0, j1, lane, lanes);
  }

 private:
  FULGURITE_HOST_DEVICE uint32_t layout_bits(int64_t i, int64_t j, int32_t count) const {
    const int64_t size = rule_.block_size, row = i / size;
    uint32_t bits = 0;
    int64_t block = j / size;
    for (int64_t begin = block * size - j; begin < count; begin += size, ++block)
      if (layout_.is_set(row, block))
        bits |= bits_between(static_cast<int32_t>(begin),
                             static_cast<int32_t>(begin + size < count ? begin + size : count));
    return bits;
  }

  FULGURITE_HOST_DEVICE static Seen seen(const ScorePlane& plane, int64_t i0, int64_t i1,
                                         int64_t j0, int64_t j1, int32_t lane, int32_t lanes) {
    Seen s{false, true};
    int64_t j = j0 + lane;
    for (int64_t i = i0; i < i1;) {
      if (j >= j1) {  // the next row: its first pair of this lane
        j -= j1 - j0;
        ++i;
        continue;
      }
      const bool set = plane.is_set(i, j);
      s.any |= set;
      s.all &= set;
      j += lanes;
    }
    return s;
  }

  const ScoreRule& rule_;
  ScorePlane mask_, layout_, bias_;
};

}  // namespace fulgurite
