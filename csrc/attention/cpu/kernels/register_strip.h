// Strips of rows whose scores never leave the registers: what they are made of, shared by forward and backward.
//
// Scores are the bare products where every pair is kept, the columns are whole panels and softmax knows the scale. Else an
// addend is made for each pair before the products, the bias and slopes, −inf where the pair is hidden:
//
//   s = scale·q·k + addend        s = −inf where the addend is, whatever the product was
#pragma once

#include "attention/cpu/kernels/row_scores.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Tiles leave their sums in memory.
inline constexpr bool kHasRegisterStrips = !FULGURITE_TILE_PRODUCTS;

enum class StripKind { kBare, kAdded, kInMemory };

/// How a strip is served: in registers where its products, of `longest` steps at most, are single chains, and softmax has
/// nothing between them and its exponentials but addends.
template <class E>
FULGURITE_INLINE StripKind strip_kind(const AttentionParams& p, const Tile& t, int64_t longest) {
  if (!kHasRegisterStrips || longest > kLongestChain<E> || p.score != ScoreKind::kSoftmax ||
      p.softcap > 0 || p.dropout.active)
    return StripKind::kInMemory;
  const bool whole_panels = (t.c1 - t.c0) % kPanelColumns<E> == 0;
  return t.state == TileState::kFull && p.plain_scores && whole_panels ? StripKind::kBare
                                                                       : StripKind::kAdded;
}

/// Scores of a strip from their products: the products.
template <class T>
struct BareScores {
  using V = Native<T>;
  static constexpr bool kWholePanels = true;

  FULGURITE_INLINE V operator()(int64_t, int64_t, V product) const { return product; }
  /// x, and 0 at hidden pairs.
  FULGURITE_INLINE V where_kept(int64_t, int64_t, V x) const { return x; }
  FULGURITE_INLINE BareScores rows_from(int64_t) const { return *this; }
};

template <class T>
struct AddedScores {
  using V = Native<T>;
  static constexpr bool kWholePanels = false;
  T scale;
  const T* addends;  // rows of kScoreStride

  FULGURITE_INLINE V addend(int64_t r, int64_t c) const {
    return load<V>(addends + r * kScoreStride + c);
  }
  FULGURITE_INLINE V operator()(int64_t r, int64_t c, V product) const {
    const V add = addend(r, c);
    return select(add == kHidden<T>, add, product * scale + add);
  }
  FULGURITE_INLINE V where_kept(int64_t r, int64_t c, V x) const {
    return select(addend(r, c) == kHidden<T>, V{}, x);
  }
  FULGURITE_INLINE AddedScores rows_from(int64_t r) const {
    return {scale, addends + r * kScoreStride};
  }
};

/// The addends of a strip.
template <class T>
AddedScores<T> add_scores(const AttentionParams& p, const ScoreRule& rule, const Tile& t,
                          T* addends) {
  using V = Native<T>;
  for (int64_t r = 0; r < t.rows; ++r) {
    T* const row = addends + r * kScoreStride;
    if (rule.bias.data)
      load_bias<T>(rule, t, r, [row](int64_t c, V add) { store(row + c, add); });
    else
      for (int64_t c = t.c0; c < t.c1; c += kLanes<T>) store(row + c, V{});
    if (p.alibi_slopes) add_alibi(p, rule, t, r, row);
    hide(rule, t, r, row);
  }
  return {p.plain_scores ? T(1) : static_cast<T>(p.scale), addends};
}

/// Calls visit(NV, c) for the panels of a strip: NV, of the type std::integral_constant, vectors from column c on.
template <class E, class Scores, class Visit>
FULGURITE_INLINE void for_panels(const Tile& t, const Scores&, const Visit& visit) {
  for (int64_t c = t.c0; c < t.c1; c += kPanelColumns<E>) {
    const auto at_column = [&](auto vectors) { visit(vectors, c); };
    if constexpr (Scores::kWholePanels)
      at_column(std::integral_constant<int, kPanelVectors>{});
    else
      with_count<kPanelVectors>(ceil_div(t.c1 - c, kLanes<Accumulate<E>>), at_column);
  }
}

/// Products of MR rows with NV vectors of the block's columns from c on, the start of a panel.
template <int MR, int NV, class E, class Scores>
FULGURITE_INLINE void multiply_columns(const Tile& t, const Scores&, MatrixA<E> rows,
                                       const E* panels, int64_t K, int64_t c,
                                       Native<Accumulate<E>> (&products)[MR][NV]) {
  const int64_t width =
      Scores::kWholePanels ? kPanelColumns<E> : panel_width<E>(c, pad_columns<E>(t.columns));
  multiply_panel(rows, Panel<E>{panels + c * pad_depth<E>(K), width}, steps<E>(K), products);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
