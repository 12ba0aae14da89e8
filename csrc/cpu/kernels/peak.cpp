// What the machine can do at most: the micro-kernel's products (simd/microkernel.h) with its sums and its rows of B in
// registers and A in the first cache; AMX tiles with all operands in registers. Benchmarks report shares of it.
//
// Reads: a few numbers that stay in the first cache.
// Writes: nothing; returns the operations that were made.
// Task: rounds of products on one thread.
// Order of sums: as in the products of the set; all are 0.

#include "cpu/kernels/peak.h"

#include "simd/gemm.h"
#include "simd/kernel.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

#if FULGURITE_TILE_PRODUCTS

template <class>
double multiply(int64_t rounds) {
  constexpr TileShape kWhole{kTileMaxRows, kTileMaxBytes};
  Tiles tiles({kWhole, kWhole, kWhole, kWhole, kWhole, kWhole, kWhole, kWhole});
  for (int64_t i = 0; i < rounds; ++i) {
    tiles.dot_bfloat16<0, 4, 6>();
    tiles.dot_bfloat16<1, 4, 7>();
    tiles.dot_bfloat16<2, 5, 6>();
    tiles.dot_bfloat16<3, 5, 7>();
  }
  constexpr int kInProduct = 2 * kTileMaxRows * (kTileMaxBytes / 4) * (kTileMaxBytes / 2);
  return 4.0 * kInProduct * static_cast<double>(rounds);
}

#else

template <class E>
double multiply(int64_t rounds) {
  using V = Native<Accumulate<E>>;
  alignas(64) const E zeros[kPanelVectors * kWidth<V> * kStep<E>] = {};
  const E* a = zeros;
  const auto forget = [&a] { asm volatile("" : "+r"(a)); };  // that everything is 0, and the same
  forget();
  Steps<E> row[kPanelVectors];
  for (int j = 0; j < kPanelVectors; ++j) row[j] = load<Steps<E>>(a + j * kWidth<V> * kStep<E>);
  V acc[kStripRows][kPanelVectors] = {};
  for (int64_t i = 0; i < rounds; ++i) {
    forget();
#pragma GCC unroll 6
    for (int m = 0; m < kStripRows; ++m) {
      const Steps<E> x = splat_step(a + m * kStep<E>);
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; ++j) acc[m][j] = add_products<E>(x, row[j], acc[m][j]);
    }
  }
  V total{};
  for (int m = 0; m < kStripRows; ++m)
    for (int j = 0; j < kPanelVectors; ++j) total += acc[m][j];
  constexpr double kInRound = 2.0 * kStripRows * kPanelVectors * kStep<E> * kWidth<V>;
  return kInRound * static_cast<double>(rounds) + static_cast<double>(total[0]);
}

#endif

}  // namespace

double product_peak(const PeakParams& p) {
  double count = 0;
  with_storage(p.dtype, [&](auto s) { count = multiply<Operand<decltype(s)>>(p.rounds); });
  return count;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
