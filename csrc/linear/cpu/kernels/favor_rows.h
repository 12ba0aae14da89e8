// Rows of x and the projection as the products of random features take them.
#pragma once

#include "linear/cpu/kernels/favor_params.h"
#include "linear/cpu/kernels/stage.h"
#include "simd/gemm.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// D^-1/4, D^-1/2 and M^-1/2.
template <class T>
struct FavorScales {
  T x, square, feature;

  explicit FavorScales(const FavorProblem& p)
      : x(static_cast<T>(1 / sqrt(sqrt(static_cast<double>(p.D))))),
        square(static_cast<T>(1 / sqrt(static_cast<double>(p.D)))),
        feature(static_cast<T>(1 / sqrt(static_cast<double>(features(p))))) {}
  static int64_t features(const FavorProblem& p) {
    return p.kind == FavorKind::kHyperbolic ? 2 * p.m : p.m;
  }
};

/// (m,D) as it is stored.
template <class S, class Visitor>
FULGURITE_INLINE void with_projection(const Input& projection, const Visitor& visitor) {
  with_stored<S>(projection.float32, [&](auto stored) {
    using X = decltype(stored);
    visitor(Strided<X>{static_cast<const X*>(projection.data), projection.channel,
                       projection.position});
  });
}

/// n rows from position t of a sequence on, then zeros to the end of a vector.
template <class S, class T>
inline void stage_rows(const FavorProblem& p, const Span& span, int64_t t, int64_t n, T* to,
                       int64_t ld) {
  const S* const rows = static_cast<const S*>(p.x.data) + span.batch / p.H * p.x.batch +
                        span.batch % p.H * p.x.head + (span.start + t) * p.x.position;
  pack_plain(Strided<S>{rows, p.x.position, p.x.feature}, n, p.D, to, ld);
}

/// Where position t of a sequence lies among contiguous rows of `width` numbers.
FULGURITE_INLINE int64_t row_at(const FavorProblem& p, const Span& span, int64_t t, int64_t width) {
  return (span.batch * p.N + span.start + t) * width;
}

/// Calls visit(i, piece, span) for the pieces of a group.
template <class Visit>
FULGURITE_INLINE void for_pieces(const FavorProblem& p, int64_t group, const Visit& visit) {
  for (int64_t i = p.parts.groups[group]; i < p.parts.groups[group + 1]; ++i)
    visit(i, p.parts.pieces[i], p.parts.sequences[p.parts.pieces[i].sequence]);
}

/// Calls visit(t, n) for n positions from t on, kFavorRows at most.
template <class Visit>
FULGURITE_INLINE void for_row_blocks(const Piece& piece, const Visit& visit) {
  for (int64_t t = piece.begin; t < piece.end; t += kFavorRows)
    visit(t, piece.end - t < kFavorRows ? piece.end - t : kFavorRows);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
