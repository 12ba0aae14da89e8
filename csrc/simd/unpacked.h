// Products of few rows with a B that is read where it stands: packing it would take longer than multiplying. Every element
// is the same chain over k as with packed panels (microkernel.h), so the bits are the same.
//
//   C[m][n] (+)= Σ_k A[m][k] · B[k][n]        B of storage type S, its rows or its columns contiguous
#pragma once

#include "simd/pack.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// None on AMX tiles, whose sums are of another order.
inline constexpr int64_t kFewRows = FULGURITE_TILE_PRODUCTS ? 0 : 2 * kStripRows;

/// Rows of A up to which reading b in place pays: every strip of kStripRows reads it again, and turns it again where its
/// columns are contiguous. None where neither is.
template <class S>
FULGURITE_INLINE int64_t rows_unpacked(Strided<S> b) {
  if (b.column_stride == 1) return kFewRows;
  return b.row_stride == 1 ? kFewRows / 2 : 0;
}

/// C (+)= A·B, a chain over all of K, for a B that has rows_unpacked and an A whose rows are contiguous. Compiled once, in
/// unpacked.cpp: inlined into its callers it was half of what all kernels together take to compile.
template <class T, class S>
void multiply_unpacked(int64_t M, int64_t N, int64_t K, MatrixA<T> a, Strided<S> b,
                       Accumulate<T>* c, int64_t ldc, bool accumulate);

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
