// The 8-bit kernel alone: nearest codes, blocks that begin anywhere in memory, and the words of
// stochastic rounding against one counter at a time.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.h"
#include "optim/cpu/kernels/stochastic.h"
#include "optim/values.h"
#include "std_math.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
Adamw8bitTaskFn adamw_8bit_update;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

const DynamicMap kSigned = make_dynamic_map(true), kUnsigned = make_dynamic_map(false);

struct Codes {
  std::vector<uint8_t> m, v;
  std::vector<float> m_scale, v_scale;
  explicit Codes(size_t n)
      : m(n, 127), v(n, 0), m_scale((n + kBlock - 1) / kBlock), v_scale(m_scale.size()) {}
};

void run(Values& x, Codes& codes, const Walk& walk, const std::vector<int64_t>& layouts) {
  AdamwTensor tensor = descriptor(x);
  tensor.data[kExpAvg] = codes.m.data();
  tensor.data[kExpAvgSq] = codes.v.data();
  tensor.bytes[kExpAvg] = tensor.bytes[kExpAvgSq] = 1;
  const AdamwScalars numbers = scalars();
  const BlockScales scales{codes.m_scale.data(), codes.v_scale.data(), 1, 1};
  const Adamw8bitProblem p{
      {&walk, layouts.data(), &tensor, &numbers, 1, {}, false}, &scales, &kSigned, &kUnsigned};
  FULGURITE_VARIANT::adamw_8bit_update(p, 0, (walk.numel + kBlock - 1) / kBlock * kBlock);
}

uint8_t nearest(const DynamicMap& map, double quotient) {
  int best = 0;
  for (int k = 1; k < 256; ++k)
    if (std::fabs(quotient - map.values[k]) < std::fabs(quotient - map.values[best])) best = k;
  return static_cast<uint8_t>(best);
}

}  // namespace

TEST_CASE("maps rise, and hold 0 and 1") {
  for (const DynamicMap* map : {&kSigned, &kUnsigned}) {
    CHECK(std::is_sorted(map->values, map->values + 256));
    CHECK(std::adjacent_find(map->values, map->values + 256) == map->values + 256);
    CHECK(map->values[map->zero] == 0);
    CHECK(map->values[255] == 1);
  }
  CHECK(kSigned.zero == 127);
  CHECK(kUnsigned.zero == 0);
}

TEST_CASE("a cell holds at most one middle") {
  for (const DynamicMap* map : {&kSigned, &kUnsigned})
    for (int cell = 1; cell < DynamicMap::kCells - 1; ++cell) {  // the last is 1 alone
      const double upper = detail::cell_edge(cell + 1) * (1 + 0x1p-22);
      CHECK(map->middles[map->guess[cell] + 1] > upper);
    }
}

TEST_CASE("codes are the nearest ones, whatever the length") {
  for (int64_t n : {1, 2, 15, 17, 255, 256, 257, 600}) {
    Values x(n);
    for (size_t i = 0; i < x.g.size(); ++i) x.g[i] *= std::pow(10.0f, -static_cast<float>(i % 8));
    const std::vector<float> grads = x.g;
    Codes codes(static_cast<size_t>(n));
    run(x, codes, {0, n, 0, 0}, {});
    for (size_t i = 0; i < codes.m.size(); ++i) {
      const float g = grads[i] * 0.5f, m = std::fma(0.1f, g, 0.0f), v = 0.001f * g * g;
      const double m_scale = codes.m_scale[i / kBlock], v_scale = codes.v_scale[i / kBlock];
      CHECK(codes.m[i] == nearest(kSigned, m / m_scale));
      CHECK(codes.m[i] == nearest_code<true, StdMath>(kSigned, codes.m_scale[i / kBlock], m));
      CHECK(codes.v[i] == nearest_code<false, StdMath>(kUnsigned, codes.v_scale[i / kBlock], v));
      CHECK(std::fabs(kUnsigned.values[codes.v[i]] - v / v_scale) <=
            std::fabs(kUnsigned.values[nearest(kUnsigned, v / v_scale)] - v / v_scale) + 1e-6);
    }
  }
}

TEST_CASE("blocks run over the rows of a strided gradient") {
  constexpr int64_t kRows = 40, kColumns = 21;
  Values dense(kRows * kColumns), x(kRows * kColumns);
  Codes dense_codes(kRows * kColumns), codes(kRows * kColumns);
  run(dense, dense_codes, {0, kRows * kColumns, 0, 0}, {});
  const std::vector<int64_t> layouts = turn_gradient(x, kRows, kColumns);
  run(x, codes, {0, kRows * kColumns, 2, 0}, layouts);
  CHECK(x.p == dense.p);
  CHECK(codes.m == dense_codes.m);
  CHECK(codes.v == dense_codes.v);
  CHECK(codes.m_scale == dense_codes.m_scale);
}

TEST_CASE("vectors of words are the words one by one") {
  using namespace FULGURITE_VARIANT;
  const RoundingSeed seed{{0x12345678u, 0x9abcdef0u}, 77};
  uint32_t buffer[kWords];
  for (int64_t first : {int64_t{0}, int64_t{3}, int64_t{1021}, (int64_t{1} << 34) - 6}) {
    const uint32_t* const words = words_of(seed, 5, first, 1, kBlock, buffer);
    for (int64_t i = 0; i < kBlock; ++i) CHECK(words[i] == rounding_word(seed, 5, first + i));
  }
}
