// The one matrix product that every operator uses: C (+)= A·B with A read by broadcasts and B by rows of vectors.
//
//   C[m][n] (+)= Σ_k A[m][k] · B[k][n]        operands of type T: float, double or bfloat16; C in the accumulation type
//
// A step along k takes one element of A and of B, or two of bfloat16, whose products one instruction adds (dot_pairs.h).
// A's free strides make a transposed A cost nothing. B comes in panels of NR columns, [N/NR][steps][NR][elements of a step]
// (simd/pack.h), the last one as narrow as whole vectors allow: read in place with a stride of 1024 bytes its rows would
// share four cache sets (76 against 98 GFLOP/s). A strip of MR rows of A by a panel gives MR×NR of C, a microtile, which stays in
// registers over the whole of k: 6×16 with AVX2 (12 accumulators, 2 vectors of B, 1 broadcast of 16 registers), 6×64 with AVX-512
// (24 of 32). C is added after the chain over k, not before: shorter chains, smaller errors.
#pragma once

#include "common/ceil_div.h"
#include "simd/dot_pairs.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

#if FULGURITE_TILE_PRODUCTS
inline constexpr int kStripRows = 32, kPanelVectors = 4;
#elif defined(__AVX512F__)
inline constexpr int kStripRows = 6, kPanelVectors = 4;
#elif defined(__AVX2__)
inline constexpr int kStripRows = 6, kPanelVectors = 2;
#else
inline constexpr int kStripRows = 4, kPanelVectors = 2;
#endif
template <class T>
inline constexpr int kPanelColumns = kPanelVectors * kLanes<Accumulate<T>>;

/// Columns of a packed B, and of the C that it gives: whole vectors.
template <class T>
FULGURITE_INLINE constexpr int64_t pad_columns(int64_t n) {
  return pad_lanes<Accumulate<T>>(n);
}

/// What products of storage type S multiply: bfloat16 itself where the set multiplies pairs of it.
#if FULGURITE_PAIR_PRODUCTS
template <class S>
using Operand = std::conditional_t<std::is_same_v<S, BFloat16>, BFloat16, Accumulate<S>>;
#else
template <class S>
using Operand = Accumulate<S>;
#endif

/// One step along k for each lane of C: as the products take it, and as numbers to be moved about.
template <class T>
struct StepOf {
  static constexpr int kElements = 1;
  using Products = Native<T>;
  using Moves = Native<T>;
};
template <>
struct StepOf<BFloat16> {
  static constexpr int kElements = 2;
  using Products = Vec<uint16_t, 2 * kLanes<float>>;
  using Moves = Vec<uint32_t, kLanes<float>>;
};
template <class T>
using Steps = typename StepOf<T>::Products;
template <class T>
inline constexpr int kStep = StepOf<T>::kElements;
template <class T>
FULGURITE_INLINE constexpr int64_t steps(int64_t K) {
  return ceil_div(K, kStep<T>);
}
/// Elements along k of a packed B: whole steps.
template <class T>
FULGURITE_INLINE constexpr int64_t pad_depth(int64_t K) {
  return steps<T>(K) * kStep<T>;
}

/// The step at p in every lane.
template <class T>
FULGURITE_INLINE Steps<T> splat_step(const T* p) {
  if constexpr (kStep<T> == 2) {
    uint32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return bit_cast<Steps<T>>(splat<Vec<uint32_t, kLanes<float>>>(pair));
  } else {
    return splat<Native<T>>(*p);
  }
}
template <class T>
FULGURITE_INLINE Native<Accumulate<T>> add_products(Steps<T> a, Steps<T> b,
                                                    Native<Accumulate<T>> c) {
  if constexpr (kStep<T> == 2)
    return dot_pairs<kLanes<float>>(c, a, b);
  else
    return madd(a, b, c);
}

template <class T>
struct MatrixA {
  const T* data;
  int64_t row_stride, step_stride;  // in elements
};

/// `depth` elements along k by `columns`, both padded; products leave out the first `skip` along k.
template <class T>
struct PanelsB {
  const T* data;
  int64_t depth, columns, skip = 0;
};

/// A panel of B from step k on.
template <class T>
struct Panel {
  const T* data;
  int64_t width;  // columns
};
template <class T>
FULGURITE_INLINE int64_t panel_width(int64_t n, int64_t columns) {
  return columns - n < kPanelColumns<T> ? columns - n : kPanelColumns<T>;
}
/// n: its first column, a multiple of NR.
template <class T>
FULGURITE_INLINE Panel<T> panel_of(PanelsB<T> b, int64_t n, int64_t k = 0) {
  const int64_t width = panel_width<T>(n, b.columns);
  return {b.data + n * b.depth + (b.skip + k * kStep<T>)*width, width};
}
/// Where columns c … of a step lie among packed panels: c is a multiple of a vector.
template <class T>
FULGURITE_INLINE int64_t packed_at(int64_t step, int64_t c, int64_t depth, int64_t columns) {
  const int64_t n = c / kPanelColumns<T> * kPanelColumns<T>;
  return n * depth + (step * panel_width<T>(n, columns) + c - n) * kStep<T>;
}

/// acc += A·B for MR rows and the first NV vectors of a panel.
template <int MR, int NV, class T>
FULGURITE_INLINE void multiply_panel(MatrixA<T> a, Panel<T> b, int64_t steps,
                                     Native<Accumulate<T>> (&acc)[MR][NV]) {
  constexpr int W = kLanes<Accumulate<T>>;
  const T *x = a.data, *rows = b.data;
  for (int64_t k = 0; k < steps; ++k, x += a.step_stride, rows += b.width * kStep<T>) {
    Steps<T> row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) row[j] = load<Steps<T>>(rows + j * W * kStep<T>);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const Steps<T> xm = splat_step(x + m * a.row_stride);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[m][j] = add_products<T>(xm, row[j], acc[m][j]);
    }
  }
}

/// C (+)= acc.
template <int MR, int NV, class T>
FULGURITE_INLINE void store_chain(const Native<Accumulate<T>> (&acc)[MR][NV], Accumulate<T>* c,
                                  int64_t ldc, bool accumulate) {
  using V = Native<Accumulate<T>>;
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      Accumulate<T>* const p = c + m * ldc + j * kWidth<V>;
      store(p, accumulate ? load<V>(p) + acc[m][j] : acc[m][j]);
    }
}

/// A strip of A by a panel of B, or the first NV vectors of it.
template <int MR, int NV, class T>
FULGURITE_INLINE void gemm_microtile(MatrixA<T> a, Panel<T> b, int64_t steps, Accumulate<T>* c,
                                     int64_t ldc, bool accumulate) {
  Native<Accumulate<T>> acc[MR][NV] = {};
  multiply_panel(a, b, steps, acc);
  store_chain<MR, NV, T>(acc, c, ldc, accumulate);
}

/// gemm_microtile for `vectors` of a panel.
template <int MR, int NV = kPanelVectors, class T>
FULGURITE_INLINE void gemm_vectors(int64_t vectors, MatrixA<T> a, Panel<T> b, int64_t steps,
                                   Accumulate<T>* c, int64_t ldc, bool accumulate) {
  if (vectors >= NV) return gemm_microtile<MR, NV>(a, b, steps, c, ldc, accumulate);
  if constexpr (NV > 1) gemm_vectors<MR, NV - 1>(vectors, a, b, steps, c, ldc, accumulate);
}

/// Steps [begin, end) of the sum over k; empty: the microtile stays as it is.
struct Depth {
  int64_t begin, end;
};

/// Calls strip(rows, m) for strips of rows that cover M, `rows` a constant of the type std::integral_constant.
template <class Strip>
FULGURITE_INLINE void for_strips(int64_t M, const Strip& strip) {
  int64_t m = 0;
  for (; m + kStripRows <= M; m += kStripRows) strip(std::integral_constant<int, kStripRows>{}, m);
  for (; m + 4 <= M; m += 4) strip(std::integral_constant<int, 4>{}, m);
  for (; m + 2 <= M; m += 2) strip(std::integral_constant<int, 2>{}, m);
  for (; m < M; ++m) strip(std::integral_constant<int, 1>{}, m);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
