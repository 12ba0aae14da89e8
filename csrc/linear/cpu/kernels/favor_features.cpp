// Positive random features, whose products estimate exp(q·k/√D). With x' = D^-1/4·x and p_j = ω_j·x' for the rows of the projection,
//   φ_j = M^-1/2·(exp(p_j − |x'|²/2 − c) + eps)      hyperbolic: for p, then for −p
// c is the largest p (hyperbolic: |p|): of a query's own, of a sequence's for keys, NaN left aside. No exponent is above 0.
//
// Reads: x and projection, of any strides; favor_features of keys: maxima, and products in the place of out.
// Writes: out; favor_maxima: a maximum for each piece, and products into out where it has room for them.
// Task: a group of pieces of sequences of heads.
// Order of sums: along D from 0 on; |x|² lane by lane, then over lanes. A position's bits depend on itself and on c alone.

#include "linear/cpu/kernels/favor_rows.h"
#include "simd/math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct FeatureScratch {
  int64_t ld_x, ld;
  T *panels, *x, *products;

  FeatureScratch(const FavorProblem& p, void* base) : FeatureScratch(p, Arena(base)) {}
  int64_t bytes() const { return bytes_; }

 private:
  FeatureScratch(const FavorProblem& p, Arena arena)
      : ld_x(pad_lanes<T>(p.D)),
        ld(pad_lanes<T>(p.m)),
        panels(arena.take<T>(ld * p.D)),
        x(arena.take<T>(kFavorRows * ld_x)),
        products(arena.take<T>(kFavorRows * ld)),
        bytes_(arena.used()) {}
  int64_t bytes_;
};

template <class S, bool kHyperbolic>
class FeatureTask {
  using T = Accumulate<S>;
  using V = Native<T>;
  static constexpr T kNone = -static_cast<T>(__builtin_inf());

 public:
  FeatureTask(const FavorFeaturesParams& p, void* memory)
      : p_(p),
        s_(p, memory),
        scales_(p),
        features_(FavorScales<T>::features(p)),
        eps_(static_cast<T>(p.eps) * scales_.feature) {
    with_projection<S>(p.projection,
                       [&](auto rows) { pack_transposed<T>(rows, p.m, p.D, s_.panels); });
  }

  /// The largest product of each piece of keys.
  void maxima(int64_t group) const {
    for_pieces(p_, group, [&](int64_t i, const Piece& piece, const Span& span) {
      V most = splat<V>(kNone);
      for_row_blocks(piece, [&](int64_t t, int64_t n) {
        stage_rows<S>(p_, span, t, n, s_.x, s_.ld_x);
        multiply(n);
        for (int64_t r = 0; r < n; ++r) {
          const T* const row = s_.products + r * s_.ld;
          most = largest(row, most);
          if constexpr (kOutHoldsProducts) store_row(out(span, t + r), row, p_.m);
        }
      });
      static_cast<T*>(p_.maxima)[i] = max_lane(most);
    });
  }

  void features(int64_t group) const {
    for_pieces(p_, group, [&](int64_t i, const Piece& piece, const Span& span) {
      const T of_keys = p_.is_query ? kNone : of_sequence(i);
      for_row_blocks(piece, [&](int64_t t, int64_t n) {
        stage_rows<S>(p_, span, t, n, s_.x, s_.ld_x);
        if (p_.is_query || !kOutHoldsProducts) multiply(n);
        for (int64_t r = 0; r < n; ++r) {
          const T* const row = products(span, t, r);
          const T most = p_.is_query ? max_lane(largest(row, splat<V>(kNone))) : of_keys;
          write(row, half_norm(r), most, out(span, t + r));
        }
      });
    });
  }

 private:
  static constexpr bool kOutHoldsProducts = std::is_same_v<S, T>;

  void multiply(int64_t rows) const {
    gemm<T>(rows, p_.m, p_.D, {s_.x, s_.ld_x, 1}, {s_.panels, p_.D, s_.ld}, s_.products, s_.ld,
            false);
  }
  S* out(const Span& span, int64_t t) const {
    return static_cast<S*>(p_.out) + row_at(p_, span, t, features_);
  }
  const T* products(const Span& span, int64_t t, int64_t r) const {
    if constexpr (kOutHoldsProducts)
      if (!p_.is_query) return out(span, t + r);
    return s_.products + r * s_.ld;
  }
  /// Lane by lane; a NaN is passed over.
  V largest(const T* row, V most) const {
    for (int64_t j = 0; j < p_.m; j += kWidth<V>) {
      const V p = load_first<V>(row + j, p_.m - j, kHyperbolic ? T(0) : kNone);
      most = max(kHyperbolic ? abs(p) : p, most);
    }
    return most;
  }
  T of_sequence(int64_t i) const {
    const Piece* const pieces = p_.parts.pieces;
    while (pieces[i].begin > 0) --i;
    T most = kNone;
    const int64_t length = p_.parts.sequences[pieces[i].sequence].length;
    do {
      const T of_piece = static_cast<const T*>(p_.maxima)[i];
      most = of_piece > most ? of_piece : most;
    } while (pieces[i++].end < length);
    return most;
  }
  /// |x'|²/2
  T half_norm(int64_t r) const {
    V squares{};
    for (int64_t d = 0; d < s_.ld_x; d += kWidth<V>) {
      const V x = load<V>(s_.x + r * s_.ld_x + d);
      squares = madd(x, x, squares);
    }
    return sum(squares) * (scales_.square / 2);
  }
  void write(const T* row, T half, T most, S* to) const {
    const V scale = splat<V>(scales_.x), less = splat<V>(-half),
            feature = splat<V>(scales_.feature), eps = splat<V>(eps_);
    const auto feature_of = [&](V p) {
      return madd(exp_flushed(madd(p - most, scale, less)), feature, eps);
    };
    for (int64_t j = 0; j < p_.m; j += kWidth<V>) {
      const V p = load_first<V>(row + j, p_.m - j);
      store_up_to(to + j, feature_of(p), p_.m - j);
      if constexpr (kHyperbolic) store_up_to(to + p_.m + j, feature_of(-p), p_.m - j);
    }
  }

  const FavorFeaturesParams& p_;
  const FeatureScratch<T> s_;
  const FavorScales<T> scales_;
  const int64_t features_;
  const T eps_;
};

template <class Visitor>
FULGURITE_INLINE void with_task(const FavorFeaturesParams& p, void* scratch,
                                const Visitor& visitor) {
  with_storage(p.dtype, [&](auto s) {
    using S = decltype(s);
    if (p.kind == FavorKind::kHyperbolic)
      visitor(FeatureTask<S, true>(p, scratch));
    else
      visitor(FeatureTask<S, false>(p, scratch));
  });
}

}  // namespace

void favor_layout(const FavorFeaturesParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    *bytes = FeatureScratch<Accumulate<decltype(s)>>(p, nullptr).bytes();
  });
}

void favor_maxima(const FavorFeaturesParams& p, int64_t group, void* scratch) {
  with_task(p, scratch, [&](const auto& task) { task.maxima(group); });
}

void favor_features(const FavorFeaturesParams& p, int64_t group, void* scratch) {
  with_task(p, scratch, [&](const auto& task) { task.features(group); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
