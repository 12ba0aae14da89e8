// The emulated tiles: against float64, and in the exact order and rounding of the instructions; where the machine has them,
// against the instructions themselves.
#include "simd/tiles.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "catch.h"

using namespace fulgurite;
namespace set = fulgurite::FULGURITE_VARIANT;
using set::TileShape;

namespace {

/// Row-major M×2P and 2P×N bfloat16 matrices, B also in pairs, and C.
struct Operands {
  int M, N, P;
  std::vector<BFloat16> a, b, pairs;
  std::vector<float> c;

  Operands(int M, int N, int P)
      : M(M),
        N(N),
        P(P),
        a(size_t(M * 2 * P)),
        b(size_t(2 * P * N)),
        pairs(size_t(P * N * 2)),
        c(size_t(M * N)) {
    for (size_t i = 0; i < a.size(); ++i)
      a[i] = set::from_accumulate<BFloat16>(std::sin(1.f + 0.7f * float(i)));
    for (size_t i = 0; i < b.size(); ++i)
      b[i] = set::from_accumulate<BFloat16>(std::cos(2.f + 1.1f * float(i)));
    for (size_t i = 0; i < c.size(); ++i) c[i] = std::sin(float(i));
    for (int k = 0; k < 2 * P; ++k)
      for (int n = 0; n < N; ++n) pairs[size_t((k / 2 * N + n) * 2 + k % 2)] = b[size_t(k * N + n)];
  }
};

/// C + A·B through tiles 0 (C), 6 (A) and 7 (B), three times over when `times` is 3.
template <class Tiles>
std::vector<float> multiply(const Operands& o, int times = 1) {
  const TileShape c{uint8_t(o.M), uint16_t(4 * o.N)}, a{uint8_t(o.M), uint16_t(4 * o.P)},
      b{uint8_t(o.P), uint16_t(4 * o.N)};
  const TileShape shapes[set::kTileRegisters] = {c, {}, {}, {}, {}, {}, a, b};
  std::vector<float> result(o.c);
  Tiles tiles(shapes);
  tiles.template load<0>(o.c.data(), 4 * o.N);
  tiles.template load<6>(o.a.data(), 4 * o.P);
  tiles.template load<7>(o.pairs.data(), 4 * o.N);
  for (int i = 0; i < times; ++i) tiles.template dot_bfloat16<0, 6, 7>();
  tiles.template store<0>(result.data(), 4 * o.N);
  return result;
}

/// One element of C: P pairs of A and B given as float, through an M = N = 1 tile.
float dot(const std::vector<float>& a, const std::vector<float>& b, float c) {
  Operands o(1, 1, int(a.size() / 2));
  for (size_t i = 0; i < a.size(); ++i) o.a[i] = set::from_accumulate<BFloat16>(a[i]);
  for (size_t i = 0; i < b.size(); ++i) o.pairs[i] = set::from_accumulate<BFloat16>(b[i]);
  o.c[0] = c;
  return multiply<set::EmulatedTiles>(o)[0];
}

}  // namespace

TEST_CASE("emulated tiles compute C + A·B", "[tiles]") {
  for (const int M : {1, 7, 16})
    for (const int N : {1, 9, 16})
      for (const int P : {1, 5, 16}) {
        const Operands o(M, N, P);
        const std::vector<float> result = multiply<set::EmulatedTiles>(o, 3);
        double worst = 0;
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < N; ++n) {
            double exact = 0, size = 0;
            for (int k = 0; k < 2 * P; ++k) {
              const double term = 3. * set::to_accumulate(o.a[size_t(m * 2 * P + k)]) *
                                  set::to_accumulate(o.b[size_t(k * N + n)]);
              exact += term;
              size += std::abs(term);
            }
            worst = std::max(worst,
                             std::abs(result[size_t(m * N + n)] - exact - o.c[size_t(m * N + n)]) /
                                 (0x1p-24 * (P + 5) * (size + 1)));
          }
        INFO(M << "x" << N << "x" << 2 * P);
        CHECK(worst <= 1);
      }
}

TEST_CASE("even and odd products are summed apart, then added, then added to C", "[tiles]") {
  // 2^24 + 1 needs 25 bits: what survives shows where it was rounded.
  const float big = 0x1p24f;
  CHECK(dot({big, 1}, {1, 1}, -big) ==
        0);  // even + odd = 2^24 (tie to even) before C is added; C first would give 1
  CHECK(dot({big, 1, -big, 0}, {1, 1, 1, 0}, 0) ==
        1);  // the odd chain never meets 2^24; pairs in turn would give 0
  CHECK(dot({big, 0, 1, 0, -big, 0}, {1, 0, 1, 0, 1, 0}, 0) ==
        0);  // the even chain runs in the order of the pairs
  CHECK(dot({1 + 0x1p-7f, 0}, {1 + 0x1p-7f, 0}, 0) ==
        1 + 0x1p-6f + 0x1p-14f);  // products are not rounded to bfloat16
}

TEST_CASE("subnormal operands, sums and results count as zero", "[tiles]") {
  const float tiny = 0x1p-130f;
  CHECK(dot({tiny, 0}, {0x1p100f, 0}, 0) == 0);
  CHECK(dot({1, 0}, {0, 0}, tiny) == 0);
  CHECK(dot({0x1p-100f, 0}, {0x1p-30f, 0}, 0) == 0);
  CHECK(dot({0x1p-64f, 0x1p-64f}, {0x1p-63f, 0x1p-63f}, 0) ==
        0);  // two halves of the smallest normal number
  CHECK(dot({0x1p-63f, 0}, {0x1p-63f, 0}, 0) == 0x1p-126f);
  CHECK(std::isnan(dot({std::numeric_limits<float>::infinity(), 0}, {tiny, 0}, 0)));  // ∞·0
}

TEST_CASE("a tile keeps to its shape, and zero clears it", "[tiles]") {
  const TileShape shapes[set::kTileRegisters] = {{3, 8}};
  const int32_t from[4][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}, {13, 14, 15, 16}};
  int32_t to[4][4] = {};
  set::Tiles tiles(shapes);
  tiles.load<0>(from, sizeof(from[0]));
  tiles.store<0>(to, sizeof(to[0]));
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 4; ++i) CHECK(to[r][i] == (r < 3 && i < 2 ? from[r][i] : 0));
  tiles.zero<0>();
  tiles.store<0>(to, sizeof(to[0]));
  for (int r = 0; r < 3; ++r) CHECK((to[r][0] == 0 && to[r][1] == 0));
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
TEST_CASE("the processor's tiles give the emulation's bits", "[tiles]") {
  for (const int M : {1, 7, 16})
    for (const int N : {1, 9, 16})
      for (const int P : {1, 5, 16}) {
        const Operands o(M, N, P);
        CHECK(multiply<set::HardwareTiles>(o, 2) == multiply<set::EmulatedTiles>(o, 2));
      }
}
#endif
