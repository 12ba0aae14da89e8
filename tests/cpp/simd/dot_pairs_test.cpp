// The emulated pair products and conversions: in the exact order and rounding of the instructions; where the machine has
// them, against the instructions themselves.
#include "simd/dot_pairs.h"

#include <cmath>
#include <cstring>

#include "catch.h"

using namespace fulgurite;
namespace set = fulgurite::FULGURITE_VARIANT;

TEST_CASE("pair products add the odd element first, by fma, subnormals flushed", "[dot_pairs]") {
  using F = set::Vec<float, 4>;
  using U = set::Vec<uint16_t, 8>;
  const auto pair = [](float even, float odd) {
    const uint16_t e = set::from_accumulate<BFloat16>(even).bits,
                   o = set::from_accumulate<BFloat16>(odd).bits;
    return U{e, o, e, o, e, o, e, o};
  };
  const auto dot4 = [&](float c, U a, U b) {
    return set::dot_pairs_emulated<4>(set::splat<F>(c), a, b)[3];
  };
  CHECK(dot4(2, pair(3, 5), pair(7, 11)) == 78);
  CHECK(dot4(0x1p24f, pair(-0x1p24f, 1), pair(1, 1)) ==
        0);  // the 1 is lost: it is added to 2^24 first
  CHECK(dot4(0x1p24f, pair(1, -0x1p24f), pair(1, 1)) == 1);
  CHECK(dot4(0x1p-130f, pair(0, 0), pair(0, 0)) == 0);
}

TEST_CASE("narrowed pairs stand side by side, rounded to even, subnormals flushed", "[dot_pairs]") {
  using F = set::Vec<float, 4>;
  const F even{1, 1 + 0x1p-8f, 1 + 0x3p-8f, 0x1p-127f}, odd{-2, 3, -0x1p-127f, 0x1p-126f};
  const auto pairs = set::narrow_pairs<4>(even, odd), two = set::narrow_two<4>(even, odd);
  const uint16_t expected[8] = {0x3f80, 0xc000, 0x3f80, 0x4040, 0x3f82, 0x8000, 0, 0x0080};
  for (int i = 0; i < 8; ++i) {
    CHECK(pairs[i] == expected[i]);
    CHECK(two[i / 2 + i % 2 * 4] == expected[i]);
  }
}

#if defined(__AVX512BF16__)
TEST_CASE("vcvtne2ps2bf16 gives the emulation's bits", "[dot_pairs]") {
  using F = set::Vec<float, 16>;
  uint32_t state = 1;
  for (int repeat = 0; repeat < 1000; ++repeat) {
    set::Vec<uint32_t, 16> low, high;
    const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
    for (int i = 0; i < 16; ++i) {
      low[i] = next() << 16 | next();
      high[i] = next() << 16 | next();
    }
    const auto finite = [](set::Vec<uint32_t, 16> x) {  // the payload of a NaN is not emulated
      return set::bit_cast<F>((x & 0x7f800000u) == 0x7f800000u ? x & 0xff800000u : x);
    };
    const auto hardware = set::narrow_two<16>(finite(low), finite(high)),
               emulated = set::narrow_two_emulated<16>(finite(low), finite(high));
    REQUIRE(std::memcmp(&hardware, &emulated, sizeof(hardware)) == 0);
  }
}

TEST_CASE("vdpbf16ps gives the emulation's bits", "[dot_pairs]") {
  using F = set::Vec<float, 16>;
  using U = set::Vec<uint16_t, 32>;
  uint32_t state = 1;
  for (int repeat = 0; repeat < 1000; ++repeat) {
    U a{}, b{};
    F c{};
    const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
    for (int i = 0; i < 32; ++i) {
      a[i] = uint16_t(next() & 0x87ff) | 0x3c00;  // sizes 2^-7 … 2^8, both signs
      b[i] = uint16_t(next() & 0x87ff) | 0x3c00;
    }
    for (int i = 0; i < 16; ++i) c[i] = std::sin(float(next()));
    const F hardware = set::dot_pairs<16>(c, a, b), emulated = set::dot_pairs_emulated<16>(c, a, b);
    REQUIRE(std::memcmp(&hardware, &emulated, sizeof(F)) == 0);
  }
}
#endif
