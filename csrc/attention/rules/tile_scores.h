// The rule of scores.h as inner loops ask it. What a block, a row or a tile has in common is worked out once for it, and 32
// pairs of a row are a word of bits. kept() has divisions and 64-bit products for each pair, state() goes through a mask alone;
// on a GPU neither may stand in a loop over pairs.
//
//   once per block     BlockScores: mask, layout and bias of one batch entry and head
//   once per row       BlockScores::reach: the columns of the tile that are in reach, as 32-bit ranges
//   32 pairs of a row  BlockScores::kept_bits; the layout is looked up once per layout block that they meet
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

  /// Bit c, c < count ≤ 32: the pair (i, j + c) is kept. `reach`: those of its columns that are in reach.
  FULGURITE_HOST_DEVICE uint32_t kept_bits(int64_t i, int64_t j, int32_t count,
                                           uint32_t reach) const {
    uint32_t kept = reach & bits_between(0, count);
    if (layout_.data && kept) kept &= layout_bits(i, j, count);
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
    if (!layout_.data) return inside;
    const int64_t size = rule_.block_size;
    return tile_state(inside, seen(layout_, i0 / size, (i1 - 1) / size + 1, j0 / size,
                                   (j1 - 1) / size + 1, 0, 1));
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
