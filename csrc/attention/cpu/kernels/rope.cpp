// Rotary position embedding: each pair (a, b) of a row is rotated by its angle,
//   a' = a·cos − b·sin      b' = b·cos + a·sin          conjugate: sin changes sign (rotates back)
// Pairs are (x_i, x_{i+R/2}) in the halves layout and (x_{2i}, x_{2i+1}) interleaved; elements from R on pass through.
//
// Reads: x, cos and sin, of any strides.
// Writes: out, contiguous.
// Task: a range of rows.
// Order of sums: none; the two products of an element are rounded apart.

#include "attention/cpu/kernels/tile.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

/// The first n lanes to p[0], p[stride], …; all of them if n is more.
template <class V, class S>
FULGURITE_INLINE void store_strided(S* p, int64_t stride, V v, int64_t n) {
  if (stride == 1 && n >= kWidth<V>) return store_as(p, v);
  S lanes[kWidth<V>];
  store_as(lanes, v);
  for (int64_t i = 0; i < n && i < kWidth<V>; ++i) p[i * stride] = lanes[i];
}

struct RowOffsets {
  int64_t x, cos, sin;
};

FULGURITE_INLINE RowOffsets offsets_of(const RopeParams& p, int64_t row) {
  RowOffsets o{0, 0, 0};
  for (int d = p.dims - 1; d >= 0; --d) {
    const int64_t index = row % p.sizes[d];
    row /= p.sizes[d];
    o.x += index * p.x_strides[d];
    o.cos += index * p.cos_strides[d];
    o.sin += index * p.sin_strides[d];
  }
  return o;
}

template <class S, class Table>
void rotate_rows(const RopeParams& p, int64_t first, int64_t last) {
  using V = Native<Accumulate<S>>;
  const int64_t half = p.R / 2, second = p.interleaved ? 1 : half, spread = p.interleaved ? 2 : 1;
  for (int64_t row = first; row < last; ++row) {
    const RowOffsets o = offsets_of(p, row);
    const S* const x = static_cast<const S*>(p.x) + o.x;
    const Table* const cos = static_cast<const Table*>(p.cos) + o.cos;
    const Table* const sin = static_cast<const Table*>(p.sin) + o.sin;
    S* const out = static_cast<S*>(p.out) + row * p.D;
    for (int64_t i = 0; i < half; i += kWidth<V>) {
      const int64_t n = half - i;
      const V c = load_strided<V>(cos + i * p.cos_column_stride, p.cos_column_stride, n);
      V s = load_strided<V>(sin + i * p.sin_column_stride, p.sin_column_stride, n);
      if (p.conjugate) s = -s;
      const V a =
          load_strided<V>(x + i * spread * p.x_column_stride, spread * p.x_column_stride, n);
      const V b = load_strided<V>(x + (second + i * spread) * p.x_column_stride,
                                  spread * p.x_column_stride, n);
      store_strided(out + i * spread, spread, a * c - b * s, n);
      store_strided(out + second + i * spread, spread, b * c + a * s, n);
    }
    for (int64_t d = p.R; d < p.D; ++d) out[d] = x[d * p.x_column_stride];
  }
}

}  // namespace

void attention_rope(const RopeParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) {
    using S = decltype(s);
    if (p.float32_tables)
      rotate_rows<S, float>(p, first, last);
    else
      rotate_rows<S, S>(p, first, last);
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
