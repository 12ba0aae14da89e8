// Copies of strided matrices as operands of products (the accumulation type, or bfloat16), laid out for the micro-kernel.
#pragma once

#include <utility>

#include "simd/convert.h"
#include "simd/microkernel.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Element (r, c) of a stored matrix at data[r·row_stride + c·column_stride]; S is the storage
/// type.
template <class S>
struct Strided {
  const S* data;
  int64_t row_stride, column_stride;

  Strided rows_from(int64_t r) const { return {data + r * row_stride, row_stride, column_stride}; }
  Strided columns_from(int64_t c) const {
    return {data + c * column_stride, row_stride, column_stride};
  }
  Strided transposed() const { return {data, column_stride, row_stride}; }
};

/// Calls put(c, vector) over n elements of a strided row; lanes past n are zero.
template <class T, class S, class Put>
FULGURITE_INLINE void for_row(const S* row, int64_t stride, int64_t n, const Put& put) {
  using V = Native<T>;
  int64_t c = 0;
  if (stride == 1)
    for (; c + kLanes<T> <= n; c += kLanes<T>) put(c, load_as<V>(row + c));
  for (; c < n; c += kLanes<T>) {
    S lanes[kLanes<T>] = {};
    for (int64_t i = 0; i < kLanes<T> && c + i < n; ++i) lanes[i] = row[(c + i) * stride];
    put(c, load_as<V>(lanes));
  }
}

/// Elements as they are. A memcpy of unknown length becomes rep movs, whose start alone takes longer than a row.
template <class S>
FULGURITE_INLINE void copy_row(const S* row, int64_t stride, int64_t n, S* to) {
  constexpr int64_t kAtATime = kVectorBytes / sizeof(S);
  if (stride == 1) {
    int64_t c = 0;
    for (; c + kAtATime <= n; c += kAtATime) store(to + c, load<Native<uint32_t>>(row + c));
    copy_few<kAtATime / 2>(to + c, row + c, n - c);
  } else {
    for (int64_t c = 0; c < n; ++c) to[c] = row[c * stride];
  }
}

/// Row-major copy, `ld` elements a row (at least n rounded up to a vector); the padding up to ld is
/// zero.
template <class T, class S>
inline void pack_plain(Strided<S> from, int64_t rows, int64_t n, T* to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, to += ld) {
    const S* const row = from.data + r * from.row_stride;
    if constexpr (kStep<T> == 2) {
      copy_row(row, from.column_stride, n, to);
      __builtin_memset(to + n, 0, sizeof(T) * static_cast<size_t>(ld - n));
    } else {
      for (int64_t c = n / kLanes<T> * kLanes<T>; c < ld; c += kLanes<T>)
        store(to + c, Native<T>{});
      for_row<T>(row, from.column_stride, n, [to](int64_t c, Native<T> v) { store(to + c, v); });
    }
  }
}

template <class T, class S>
inline void pack_transposed(Strided<S> from, int64_t N, int64_t K, T* to);

/// W elements of a strided row with n left, as unsigned numbers; zero past n.
template <int W>
FULGURITE_INLINE Vec<uint32_t, W> load_bits(const BFloat16* row, int64_t stride, int64_t n) {
  BFloat16 lanes[W] = {};
  if (stride != 1 || n < W) {
    for (int64_t i = 0; i < W && i < n; ++i) lanes[i] = row[i * stride];
    row = lanes;
  }
  return convert<Vec<uint32_t, W>>(load<Vec<uint16_t, W>>(row));
}

/// W steps of two strided rows side by side; zero past n, and in place of an odd row that is not there.
template <int W>
FULGURITE_INLINE Vec<uint32_t, W> load_row_pair(const BFloat16* even, const BFloat16* odd,
                                                int64_t stride, int64_t n) {
  const Vec<uint32_t, W> low = load_bits<W>(even, stride, n);
  return odd ? low | load_bits<W>(odd, stride, n) << 16 : low;
}

/// One stage of a transposition: rows i and i + D exchange the blocks of D lanes that lie across the diagonal.
template <int D, class V, int... Lane>
FULGURITE_INLINE void exchange_blocks(V& upper, V& lower, std::integer_sequence<int, Lane...>) {
  constexpr int W = kWidth<V>;
  const V u = upper, l = lower;
  upper = __builtin_shufflevector(u, l, (Lane & D ? W + Lane - D : Lane)...);
  lower = __builtin_shufflevector(u, l, (Lane & D ? W + Lane : Lane + D)...);
}

/// W×W in registers, in log2(W) stages.
template <int D, class V, int W>
FULGURITE_INLINE void transpose(V (&rows)[W]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if (!(i & D)) exchange_blocks<D>(rows[i], rows[i + D], std::make_integer_sequence<int, W>{});
    transpose<D / 2>(rows);
  }
}

/// Lanes c … c + W of a strided row with n left; those past n are zero.
template <class V, class S>
FULGURITE_INLINE V load_strided(const S* row, int64_t stride, int64_t n) {
  constexpr int W = kWidth<V>;
  if (stride == 1) return n >= W ? load_as<V>(row) : load_first<V>(row, n);
  S lanes[W] = {};
  for (int64_t i = 0; i < W && i < n; ++i) lanes[i] = row[i * stride];
  return load_as<V>(lanes);
}

/// Rows that a walk along the rows of a matrix asks for ahead: their pieces lie too far apart for the processor to foresee.
inline constexpr int64_t kRowsAhead = 32;
template <class S>
FULGURITE_INLINE void prefetch_row(const S* row, int64_t n) {
  for (int64_t c = 0; c < n; c += 64 / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(row + c);
}

/// The step of rows k and, for bfloat16, k + 1 of K in W columns with n left; zero past n and past K.
template <class T, class S>
FULGURITE_INLINE typename StepOf<T>::Moves load_rows_step(const S* row, int64_t row_stride,
                                                          int64_t column_stride, int64_t k,
                                                          int64_t K, int64_t n) {
  if constexpr (kStep<T> == 1)
    return load_strided<Native<T>>(row, column_stride, n);
  else
    return load_row_pair<kLanes<float>>(row, k + 1 < K ? row + row_stride : nullptr, column_stride,
                                        n);
}
/// The same for contiguous columns, all of them there.
template <class T, class S>
FULGURITE_INLINE typename StepOf<T>::Moves load_whole_rows_step(const S* row, int64_t row_stride) {
  if constexpr (kStep<T> == 1) {
    return load_as<Native<T>>(row);
  } else {
    constexpr int W = kLanes<float>;
    using Bits = Vec<uint16_t, W>;
    using V = Vec<uint32_t, W>;
    return convert<V>(load<Bits>(row)) | convert<V>(load<Bits>(row + row_stride)) << 16;
  }
}

/// B = the matrix itself, K rows by N columns, as panels. 512 rows of 64 out of 512 bfloat16 take 4 times longer vector by
/// vector through load_rows_step, without asking ahead.
template <class T, class S>
inline void pack_rows(Strided<S> from, int64_t K, int64_t N, T* to) {
  if (from.column_stride != 1 && from.row_stride == 1)
    return pack_transposed<T>(from.transposed(), N, K, to);
  constexpr int64_t W = kLanes<Accumulate<T>>;
  const int64_t depth = pad_depth<T>(K), columns = pad_columns<T>(N);
  const int64_t whole = from.column_stride == 1 ? N / W * W : 0;
  for (int64_t k = 0; k < K; k += kStep<T>) {
    const S* const row = from.data + k * from.row_stride;
    if (whole > 0)
      for (int i = 0; i < kStep<T>; ++i) prefetch_row(row + (kRowsAhead + i) * from.row_stride, N);
    const int64_t all = k + kStep<T> <= K ? whole : 0;
    for (int64_t n = 0; n < columns; n += kPanelColumns<T>) {
      const int64_t width = panel_width<T>(n, columns);
      T* const step = to + packed_at<T>(k / kStep<T>, n, depth, columns);
      int64_t c = 0;
      for (; c < width && n + c < all; c += W)
        store(step + c * kStep<T>, load_whole_rows_step<T>(row + n + c, from.row_stride));
      for (; c < width; c += W)
        store(step + c * kStep<T>,
              load_rows_step<T>(row + (n + c) * from.column_stride, from.row_stride,
                                from.column_stride, k, K, N - n - c));
    }
  }
}

/// Steps of a strided row with n elements left; what lies past them is zero.
template <class T, class S>
FULGURITE_INLINE typename StepOf<T>::Moves load_steps(const S* row, int64_t stride, int64_t n) {
  if constexpr (kStep<T> == 1) {
    return load_strided<Native<T>>(row, stride, n);
  } else {
    using V = typename StepOf<T>::Moves;
    constexpr int64_t kElements = kStep<T> * kWidth<V>;
    S lanes[kElements] = {};
    if (stride != 1 || n < kElements) {
      for (int64_t i = 0; i < kElements && i < n; ++i) lanes[i] = row[i * stride];
      row = lanes;
    }
    return load<V>(row);
  }
}

/// What elements of S are while they are turned into operands T: bfloat16 stays as it is, in pairs, and is widened after, which
/// halves the moves.
template <class T, class S>
using TurnedAs =
    std::conditional_t<std::is_same_v<S, BFloat16> && std::is_same_v<T, float>, BFloat16, T>;
template <class T, class S>
using TurnedMoves = typename StepOf<TurnedAs<T, S>>::Moves;
/// Steps of T in each.
template <class T, class S>
inline constexpr int kTurnedSteps = kStep<TurnedAs<T, S>> / kStep<T>;

/// Step s of them.
template <class T, class S>
FULGURITE_INLINE typename StepOf<T>::Moves turned_step(TurnedMoves<T, S> moved, int s) {
  if constexpr (kTurnedSteps<T, S> == 2)
    return bit_cast<Native<T>>(s == 0 ? moved << 16 : moved & 0xffff0000u);
  else
    return moved;
}

/// W rows of as many moves, transposed in registers; zero past `rows` and past `elements` of a row.
template <class T, class S, class V, int W>
FULGURITE_INLINE void load_transposed(Strided<S> from, int64_t rows, int64_t elements,
                                      V (&square)[W]) {
  using Moved = TurnedAs<T, S>;
  if (rows >= W && elements >= W * kStep<Moved> && from.column_stride == 1) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      const S* const row = from.data + i * from.row_stride;
      if constexpr (kStep<Moved> == 1)
        square[i] = load_as<V>(row);
      else
        square[i] = load<V>(row);
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      square[i] = i < rows ? load_steps<Moved>(from.data + i * from.row_stride, from.column_stride,
                                               elements)
                           : V{};
  }
  transpose<W / 2>(square);
}

/// Asks for the rows below the W that load_transposed reads.
template <int W, class S>
FULGURITE_INLINE void prefetch_below(Strided<S> from) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) __builtin_prefetch(from.data + (W + i) * from.row_stride);
}

/// B = the transposed matrix: `from` has N rows of K elements; panels as pack_rows'. Blocks of W×W moves go through
/// registers: 64 keys of width 64 take 0.20 µs from bfloat16 and 0.40 µs from float32, 1.3 µs lane by lane (Zen 3, AVX2).
template <class T, class S>
inline void pack_transposed(Strided<S> from, int64_t N, int64_t K, T* to) {
  using V = TurnedMoves<T, S>;
  constexpr int W = kWidth<V>, kSteps = kTurnedSteps<T, S>;
  if (from.column_stride != 1 && from.row_stride == 1)
    return pack_rows<T>(from.transposed(), K, N, to);
  const int64_t depth = steps<T>(K), padded = pad_columns<T>(N);
  for (int64_t n0 = 0; n0 < padded; n0 += W) {
    T* const panel = to + packed_at<T>(0, n0, depth * kStep<T>, padded);
    const int64_t row = panel_width<T>(n0 / kPanelColumns<T> * kPanelColumns<T>, padded) * kStep<T>;
    const Strided<S> rows = from.rows_from(n0);
    for (int64_t k0 = 0; k0 < depth; k0 += W * kSteps) {
      const Strided<S> part = rows.columns_from(k0 * kStep<T>);
      V square[W];
      load_transposed<T>(part, N - n0, K - k0 * kStep<T>, square);
      prefetch_below<W>(part);
      const auto store_step = [&](int i) {
        store(panel + (k0 + i) * row, turned_step<T, S>(square[i / kSteps], i % kSteps));
      };
      if (depth - k0 >= W * kSteps) {
#pragma GCC unroll 32
        for (int i = 0; i < W * kSteps; ++i) store_step(i);
      } else {
        for (int i = 0; i < depth - k0; ++i) store_step(i);
      }
    }
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
