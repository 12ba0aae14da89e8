// The product of microkernel.h on AMX tiles, with the same operands: A and B in steps of two bfloat16.
//
//   C[m][n] (+)= Σ_g (Σ_{k ∈ g} even products + Σ_{k ∈ g} odd products)        g: groups of 16 steps, one tile's depth
//
// A tile is AMX's here. Four hold a microtile, 32×32 of C; two of A and two of B feed them: a tile that is loaded serves two
// products. B's panels are tiles as they lie, and so is A where a row's steps are neighbours; a transposed A, and whatever is cut
// off by an edge, is copied. Groups begin at multiples of 16 steps whatever part of the depth is asked for: an element's bits depend
// on its own row and column alone.
#pragma once

#include "simd/pack.h"
#include "simd/tiles.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

inline constexpr int64_t kTileSide = 16;  // rows of a tile, columns of C, steps of a group
inline constexpr int64_t kMicrotileSide = 2 * kTileSide;
inline constexpr int64_t kChunkGroups = 8;  // of A that are found at once

/// A tile in memory: kTileSide rows of 64 bytes.
struct TileInMemory {
  const void* data;
  int64_t stride;  // in bytes
};

/// One tile of operands: a copy with zeros in place of what is not there.
struct alignas(64) TileCopy {
  BFloat16 elements[kTileSide][2 * kTileSide];

  TileInMemory tile() const { return {elements, sizeof(elements[0])}; }
};

/// The first `count` lanes from p; zeros in place of the others, which are not read. A copy of unknown length takes longer than
/// the product of a tile. nothrow: g++ 12 takes the intrinsic for a call that may throw.
template <class V>
__attribute__((nothrow)) FULGURITE_INLINE V load_lanes(const void* p, int64_t count) {
#ifdef __AVX512F__
  static_assert(sizeof(V) == 64 && sizeof(Element<V>) == 4);
  return (V)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), p);
#else
  V lanes{};
  __builtin_memcpy(&lanes, p, sizeof(Element<V>) * static_cast<size_t>(count));
  return lanes;
#endif
}

/// `rows` of A by `count` steps from its first. A's steps are neighbours along its rows or along its columns.
inline void copy_tile(MatrixA<BFloat16> a, int64_t rows, int64_t count, TileCopy& to) {
  using V = Vec<uint32_t, kTileSide>;
  const bool along_rows = a.step_stride == 2;
  const int64_t lines = along_rows ? rows : count, steps = along_rows ? count : rows,
                stride = along_rows ? a.row_stride : a.step_stride;
  V square[kTileSide];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileSide; ++i)
    square[i] = i < lines ? load_lanes<V>(a.data + i * stride, steps) : V{};
  if (!along_rows) transpose<kTileSide / 2>(square);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileSide; ++i) store(to.elements[i], square[i]);
}

/// The tiles of kMicrotileSide rows of A over a chunk of its depth.
class RowTiles {
 public:
  /// Of `rows` rows and `steps` steps, from a's first.
  void find(MatrixA<BFloat16> a, int64_t rows, int64_t steps) {
    for (int64_t r = 0; r * kTileSide < rows; ++r)
      for (int64_t g = 0; g * kTileSide < steps; ++g) {
        const MatrixA<BFloat16> part{
            a.data + r * kTileSide * a.row_stride + g * kTileSide * a.step_stride, a.row_stride,
            a.step_stride};
        const int64_t height = at_most_side(rows - r * kTileSide),
                      count = at_most_side(steps - g * kTileSide);
        if (a.step_stride == 2 && height == kTileSide && count == kTileSide) {
          tiles_[r][g] = {part.data, 2 * a.row_stride};
        } else {
          copy_tile(part, height, count, copies_[r][g]);
          tiles_[r][g] = copies_[r][g].tile();
        }
      }
  }
  TileInMemory at(int row, int64_t group) const { return tiles_[row][group]; }

 private:
  static int64_t at_most_side(int64_t n) { return n < kTileSide ? n : kTileSide; }

  TileInMemory tiles_[2][kChunkGroups];
  TileCopy copies_[2][kChunkGroups];
};

/// Tile `group` of a panel's chunk, from a column on; copied where the panel ends within it.
FULGURITE_INLINE TileInMemory panel_tile(Panel<BFloat16> b, int64_t column, int64_t group,
                                         int64_t steps, TileCopy& copy) {
  const int64_t first = group * kTileSide, count = steps - first;
  const BFloat16* const data = b.data + (first * b.width + column) * 2;
  if (count >= kTileSide) return {data, 4 * b.width};
  copy_tile({data, 2 * b.width, 2}, count, kTileSide, copy);
  return copy.tile();
}

/// Up to kMicrotileSide rows and columns of C, whole tiles of columns.
struct MicrotileC {
  float* data;
  int64_t ld, rows, columns;
};

/// One tile of a microtile of C in memory that a tile register can be loaded from and stored to: where it lies, or, where the
/// microtile has fewer rows, a copy that give_back() writes to the rows that exist.
class EdgeC {
 public:
  EdgeC(MicrotileC c, int64_t row, int64_t column)
      : c_{c.data + row * c.ld + column, c.ld, c.rows - row, kTileSide} {
    if (whole()) return;
    for (int64_t r = 0; r < c_.rows; ++r)
      __builtin_memcpy(copy_[r], c_.data + r * c_.ld, sizeof(copy_[r]));
  }
  void* data() { return whole() ? static_cast<void*>(c_.data) : copy_; }
  int64_t stride() const { return whole() ? 4 * c_.ld : int64_t{sizeof(copy_[0])}; }
  void give_back() {
    if (whole()) return;
    for (int64_t r = 0; r < c_.rows; ++r)
      __builtin_memcpy(c_.data + r * c_.ld, copy_[r], sizeof(copy_[r]));
  }

 private:
  bool whole() const { return c_.rows >= kTileSide; }

  MicrotileC c_;
  alignas(64) float copy_[kTileSide][kTileSide];
};

/// C (+)= A·B over a chunk of the depth, for RT×CT tiles of C; b from the chunk's first step on.
template <int RT, int CT, class Tiles>
FULGURITE_INLINE void multiply_tiles(Tiles& tiles, const RowTiles& a, Panel<BFloat16> b,
                                     int64_t column, int64_t steps, MicrotileC c, bool accumulate) {
  const auto for_tiles = [](const auto& visit) {
    constexpr std::integral_constant<int, 0> k0{};
    constexpr std::integral_constant<int, 1> k1{};
    visit(k0, k0);
    if constexpr (CT == 2) visit(k0, k1);
    if constexpr (RT == 2) visit(k1, k0);
    if constexpr (RT == 2 && CT == 2) visit(k1, k1);
  };
  for_tiles([&](auto r, auto n) {
    if (!accumulate) return tiles.template zero<2 * r + n>();
    EdgeC edge(c, r * kTileSide, n * kTileSide);
    tiles.template load<2 * r + n>(edge.data(), edge.stride());
  });
  for (int64_t g = 0; g * kTileSide < steps; ++g) {
    TileCopy copy;
    const auto load_a = [&](auto r) {
      const TileInMemory tile = a.at(r, g);
      tiles.template load<4 + r>(tile.data, tile.stride);
    };
    const auto load_b = [&](auto n) {
      const TileInMemory tile = panel_tile(b, column + n * kTileSide, g, steps, copy);
      tiles.template load<6 + n>(tile.data, tile.stride);
    };
    load_a(std::integral_constant<int, 0>{});
    load_b(std::integral_constant<int, 0>{});
    if constexpr (CT == 2) load_b(std::integral_constant<int, 1>{});
    if constexpr (RT == 2) load_a(std::integral_constant<int, 1>{});
    for_tiles([&](auto r, auto n) { tiles.template dot_bfloat16<2 * r + n, 4 + r, 6 + n>(); });
  }
  for_tiles([&](auto r, auto n) {
    EdgeC edge(c, r * kTileSide, n * kTileSide);
    tiles.template store<2 * r + n>(edge.data(), edge.stride());
    edge.give_back();
  });
}

/// multiply_tiles for as many tiles as the microtile has.
template <class Tiles>
FULGURITE_INLINE void multiply_microtile(Tiles& tiles, const RowTiles& a, Panel<BFloat16> b,
                                         int64_t column, int64_t steps, MicrotileC c,
                                         bool accumulate) {
  const bool two_columns = c.columns > kTileSide;
  if (c.rows > kTileSide)
    two_columns ? multiply_tiles<2, 2>(tiles, a, b, column, steps, c, accumulate)
                : multiply_tiles<2, 1>(tiles, a, b, column, steps, c, accumulate);
  else
    two_columns ? multiply_tiles<1, 2>(tiles, a, b, column, steps, c, accumulate)
                : multiply_tiles<1, 1>(tiles, a, b, column, steps, c, accumulate);
}

/// gemm of gemm.h; depth(m0, m1, n0, n1) is the same for every n0 beside rows [m0, m1), or nothing.
template <class Tiles, class DepthOf>
inline void tile_gemm(int64_t M, int64_t N, MatrixA<BFloat16> a, PanelsB<BFloat16> b, float* c,
                      int64_t ldc, bool accumulate, const DepthOf& depth) {
  constexpr TileShape kWhole{kTileSide, kTileMaxBytes};
  constexpr TileShape kShapes[kTileRegisters] = {kWhole, kWhole, kWhole, kWhole,
                                                 kWhole, kWhole, kWhole, kWhole};
  constexpr int64_t kChunk = kChunkGroups * kTileSide;
  Tiles tiles(kShapes);
  RowTiles rows_of_a;
  for (int64_t m = 0; m < M; m += kMicrotileSide) {
    const int64_t rows = M - m < kMicrotileSide ? M - m : kMicrotileSide;
    const Depth all = depth(m, m + rows, int64_t{0}, N);
    const int64_t begin = all.begin / kTileSide * kTileSide;
    for (int64_t k = begin; k < all.end; k += kChunk) {
      const int64_t count = all.end - k < kChunk ? all.end - k : kChunk;
      rows_of_a.find({a.data + m * a.row_stride + k * a.step_stride, a.row_stride, a.step_stride},
                     rows, count);
      for (int64_t n = 0; n < N; n += kMicrotileSide) {
        const Depth here = depth(m, m + rows, n, n + kMicrotileSide);
        if (here.begin >= here.end) continue;
        const int64_t first = n / kPanelColumns<BFloat16> * kPanelColumns<BFloat16>;
        multiply_microtile(tiles, rows_of_a, panel_of(b, first, k), n - first, count,
                           {c + m * ldc + n, ldc, rows, N - n}, accumulate || k > begin);
      }
    }
  }
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
