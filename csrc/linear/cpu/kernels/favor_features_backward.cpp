// Gradients of random features, c being a constant. With e_j = M^1/2·φ_j − eps from the features themselves and g_j = M^-1/2·dφ_j·e_j,
//   dp_j = g_j      hyperbolic: g_j − g_{m+j}
//   dx = D^-1/4·Σ_j dp_j ω_j − D^-1/2·(Σ_j g_j)·x      dω_j = D^-1/4·Σ dp_j x over all positions
//
// Reads: x and projection, of any strides; out, grad_out.
// Writes: grad_x; sums of a group, which favor_projection_sums adds up to grad_projection.
// Task: a group of pieces of sequences of heads; sums: a range of rows of the projection.
// Order of sums: Σ_j g_j lane by lane, then over lanes; dx along j from 0 on; dω along positions, kFavorRows a chain, chains in order,
//   then over groups in order.

#include "linear/cpu/kernels/favor_rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
struct BackwardScratch {
  int64_t ld_x, ld;
  T* panels;  // the projection, along its rows
  T *x, *x_panels;
  T *dp, *dx;  // (kFavorRows,m), (kFavorRows,D)
  T* total;    // (kFavorRows): Σ_j g_j
  T* sums;     // (m,D)

  BackwardScratch(const FavorProblem& p, void* base) : BackwardScratch(p, Arena(base)) {}
  int64_t bytes() const { return bytes_; }

 private:
  BackwardScratch(const FavorProblem& p, Arena arena)
      : ld_x(pad_lanes<T>(p.D)),
        ld(pad_lanes<T>(p.m)),
        panels(arena.take<T>(p.m * ld_x)),
        x(arena.take<T>(kFavorRows * ld_x)),
        x_panels(arena.take<T>(kFavorRows * ld_x)),
        dp(arena.take<T>(kFavorRows * ld)),
        dx(arena.take<T>(kFavorRows * ld_x)),
        total(arena.take<T>(kFavorRows)),
        sums(arena.take<T>(p.m * ld_x)),
        bytes_(arena.used()) {}
  int64_t bytes_;
};

template <class S>
class BackwardTask {
  using T = Accumulate<S>;
  using V = Native<T>;

 public:
  BackwardTask(const FavorBackwardParams& p, void* memory)
      : p_(p), s_(p, memory), scales_(p), features_(FavorScales<T>::features(p)) {
    if (p.grad_x)
      with_projection<S>(p.projection, [&](auto rows) { pack_rows<T>(rows, p.m, p.D, s_.panels); });
    for (int64_t i = 0; p.sums && i < p.m * s_.ld_x; ++i) s_.sums[i] = 0;
  }

  void run(int64_t group) const {
    for_pieces(p_, group, [&](int64_t, const Piece& piece, const Span& span) {
      for_row_blocks(piece, [&](int64_t t, int64_t n) {
        stage_rows<S>(p_, span, t, n, s_.x, s_.ld_x);
        for (int64_t r = 0; r < n; ++r) through_features(row_at(p_, span, t + r, features_), r);
        if (p_.grad_x) write_grad_x(n, static_cast<S*>(p_.grad_x) + row_at(p_, span, t, p_.D));
        if (p_.sums) add_sums(n);
      });
    });
    if (!p_.sums) return;
    T* const to = static_cast<T*>(p_.sums) + group * p_.m * p_.D;
    for (int64_t j = 0; j < p_.m; ++j)
      store_row(to + j * p_.D, s_.sums + j * s_.ld_x, p_.D, scales_.x);
  }

 private:
  V g(int64_t at, int64_t left) const {
    const V out = load_first<V>(static_cast<const S*>(p_.out) + at, left),
            grad = load_first<V>(static_cast<const S*>(p_.grad_out) + at, left);
    return grad * (out - scales_.feature * static_cast<T>(p_.eps));
  }
  /// dp of a row and Σ_j g_j: M^-1/2·dφ·e is dφ·(φ − M^-1/2·eps). Lanes past m are zeros times something: zeros of dφ.
  void through_features(int64_t at, int64_t r) const {
    V total{};
    for (int64_t j = 0; j < p_.m; j += kWidth<V>) {
      V dp = g(at + j, p_.m - j);
      total = total + dp;
      if (p_.kind == FavorKind::kHyperbolic) {
        const V other = g(at + p_.m + j, p_.m - j);
        total = total + other;
        dp = dp - other;
      }
      store(s_.dp + r * s_.ld + j, dp);
    }
    s_.total[r] = sum(total);
  }
  void write_grad_x(int64_t n, S* to) const {
    gemm<T>(n, p_.D, p_.m, {s_.dp, s_.ld, 1}, {s_.panels, p_.m, s_.ld_x}, s_.dx, s_.ld_x, false);
    for (int64_t r = 0; r < n; ++r) {
      const V scale = splat<V>(scales_.x), less = splat<V>(-s_.total[r] * scales_.square);
      for (int64_t d = 0; d < p_.D; d += kWidth<V>) {
        const int64_t at = r * s_.ld_x + d;
        store_up_to(to + r * p_.D + d, madd(load<V>(s_.x + at), less, load<V>(s_.dx + at) * scale),
                    p_.D - d);
      }
    }
  }
  void add_sums(int64_t n) const {
    pack_rows<T>(Strided<T>{s_.x, s_.ld_x, 1}, n, p_.D, s_.x_panels);
    gemm<T>(p_.m, p_.D, n, {s_.dp, 1, s_.ld}, {s_.x_panels, n, s_.ld_x}, s_.sums, s_.ld_x, true);
  }

  const FavorBackwardParams& p_;
  const BackwardScratch<T> s_;
  const FavorScales<T> scales_;
  const int64_t features_;
};

template <class S>
void sums_of_rows(const FavorBackwardParams& p, int64_t first, int64_t last) {
  using T = Accumulate<S>;
  for (int64_t i = first * p.D; i < last * p.D; ++i) {
    T total = 0;
    for (int64_t group = 0; group < p.parts.group_count; ++group)
      total += static_cast<const T*>(p.sums)[group * p.m * p.D + i];
    store_number<S>(p.grad_projection, p.projection.float32, i, total);
  }
}

}  // namespace

void favor_features_backward_layout(const FavorBackwardParams& p, int64_t* bytes) {
  with_storage(p.dtype, [&](auto s) {
    *bytes = BackwardScratch<Accumulate<decltype(s)>>(p, nullptr).bytes();
  });
}

void favor_features_backward(const FavorBackwardParams& p, int64_t group, void* scratch) {
  with_storage(p.dtype, [&](auto s) { BackwardTask<decltype(s)>(p, scratch).run(group); });
}

void favor_projection_sums(const FavorBackwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto s) { sums_of_rows<decltype(s)>(p, first, last); });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
