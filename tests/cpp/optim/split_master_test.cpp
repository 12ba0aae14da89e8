// Float32 to halves and back, bit by bit: ties, infinities, subnormals, NaN, every length.
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "catch.h"
#include "optim/cpu/kernels/params.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
SplitTaskFn split_master, join_master;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

/// Zeros, the ends of the subnormal, normal and infinite ranges, and ties of both parities, of both signs.
std::vector<float> numbers() {
  std::vector<float> x;
  for (const uint32_t sign : {0u, 0x80000000u})
    for (const uint32_t high : {0x0000u, 0x0001u, 0x007fu, 0x0080u, 0x3f80u, 0x3f81u, 0x7f7fu})
      for (const uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
        x.push_back(float_of(sign | high << 16 | low));
  x.push_back(std::numeric_limits<float>::infinity());
  x.push_back(-std::numeric_limits<float>::infinity());
  return x;
}

struct Halves {
  std::vector<float> master;
  std::vector<uint16_t> high;
  std::vector<int16_t> low;

  explicit Halves(const std::vector<float>& x) : master(x), high(x.size(), 99), low(x.size(), 99) {}
  SplitProblem params() { return {master.data(), high.data(), low.data()}; }
};

}  // namespace

TEST_CASE("halves are the nearest bfloat16 and what is missing, and make the number again") {
  const std::vector<float> all = numbers();
  for (int64_t n = 0; n <= static_cast<int64_t>(all.size()); ++n) {
    const int64_t first = n / 3;
    Halves halves(all);
    FULGURITE_VARIANT::split_master(halves.params(), first, n);
    for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
      const bool inside = i >= first && i < n;
      const uint32_t bits = bits_of(all[i]), high = (bits + 0x8000u) >> 16;
      REQUIRE(halves.high[i] == (inside ? high : 99));
      REQUIRE(halves.low[i] == (inside ? static_cast<int32_t>(bits - (high << 16)) : 99));
    }
    halves.master.assign(all.size(), -1.0f);
    FULGURITE_VARIANT::join_master(halves.params(), first, n);
    for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i)
      REQUIRE(bits_of(halves.master[i]) == bits_of(i >= first && i < n ? all[i] : -1.0f));
  }
}

TEST_CASE("NaN becomes a quiet one with nothing missing") {
  for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff80ffffu, 0xffffffffu}) {
    Halves halves(std::vector<float>(19, float_of(bits)));
    FULGURITE_VARIANT::split_master(halves.params(), 0, 19);
    for (size_t i = 0; i < 19; ++i) {
      REQUIRE(halves.high[i] == (bits >> 16 | 0x40u));
      REQUIRE(halves.low[i] == 0);
    }
    FULGURITE_VARIANT::join_master(halves.params(), 0, 19);
    for (const float x : halves.master) REQUIRE(x != x);
  }
}
