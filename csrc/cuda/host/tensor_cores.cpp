// ldmatrix and mma.m16n8k16 as the PTX manual defines their fragments: lane l holds, with g = l/4 and t = l mod 4,
//   A   rows g, g + 8; columns 2t, 2t + 1, and 8 on: four words      B   rows 2t, 2t + 1, and 8 on; column g: two words
//   C   rows g, g + 8; columns 2t, 2t + 1: four numbers
// A card adds the sixteen products of an element in an order of its own; here it is k upwards.
#include <cmath>
#include <cstring>

#include "cuda/host/machine.h"
#include "cuda/host/report.h"

namespace cux::host {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;

void load_matrices(Lanes& lanes, bool transposed) {
  Machine& m = machine();
  const Fiber* const warp = &m.fibers[static_cast<size_t>(m.running->thread.warp * kWarp)];
  const Site site = m.combining;
  const uint16_t* row[kWarp];
  uintptr_t places[kWarp];
  for (int l = 0; l < kWarp; ++l) {
    const auto* const payload = static_cast<const LdmatrixPayload*>(lanes.payload[l]);
    const auto address = reinterpret_cast<uintptr_t>(payload->row);
    if (address % 16)
      fail("misaligned", "ldmatrix: the row of lane %d is not at a multiple of 16", l);
    places[l] = address - reinterpret_cast<uintptr_t>(m.shared.base);
    if (!m.shared.contains(address) || !m.shared.is_within(places[l], 16))
      fail("outside-shared", "ldmatrix: the row of lane %d is not in shared memory", l);
    if (settings().check)
      check_access(const_cast<Fiber&>(warp[l]), payload->row, 16, Touch::kRead, site);
    row[l] = static_cast<const uint16_t*>(payload->row);
  }
  count_ldmatrix(site, places);
  for (int matrix = 0; matrix < 4; ++matrix) {
    const uint16_t* const* const rows = row + 8 * matrix;
    for (int l = 0; l < kWarp; ++l) {
      const int g = l / 4, t = l % 4;
      const uint32_t low = transposed ? rows[2 * t][g] : rows[g][2 * t],
                     high = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
      static_cast<LdmatrixPayload*>(lanes.payload[l])->r[matrix] = low | high << 16;
    }
  }
}

template <float (*number)(uint16_t)>
void multiply(Lanes& lanes) {
  Machine& m = machine();
  ++counts().mma;
  for (const auto& group : m.fibers[static_cast<size_t>(m.running->thread.warp * kWarp)].groups)
    if (!group.empty()) {
      ++counts().mma_while_copying;
      break;
    }
  float a[kRows][kDepth], b[kDepth][kColumns], c[kRows][kColumns];
  const auto half = [](uint32_t word, int h) {
    return number(static_cast<uint16_t>(h ? word >> 16 : word));
  };
  for (int l = 0; l < kWarp; ++l) {
    const auto& p = *static_cast<const MmaPayload*>(lanes.payload[l]);
    const int g = l / 4, t = l % 4;
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < 4; ++r) a[g + 8 * (r & 1)][2 * t + h + 8 * (r >> 1)] = half(p.a[r], h);
      b[2 * t + h][g] = half(p.b0, h);
      b[2 * t + h + 8][g] = half(p.b1, h);
    }
    for (int i = 0; i < 4; ++i) c[g + 8 * (i >> 1)][2 * t + (i & 1)] = p.d[i];
  }
  for (int i = 0; i < kRows; ++i)
    for (int k = 0; k < kDepth; ++k)
      for (int j = 0; j < kColumns; ++j) c[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < kWarp; ++l)
    for (int i = 0; i < 4; ++i)
      static_cast<const MmaPayload*>(lanes.payload[l])->d[i] =
          c[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)];
}

template <class To, class From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace

void ldmatrix(Lanes& lanes) { load_matrices(lanes, false); }
void ldmatrix_transposed(Lanes& lanes) { load_matrices(lanes, true); }
void mma_bfloat16(Lanes& lanes) { multiply<float_of_bfloat16>(lanes); }
void mma_float16(Lanes& lanes) { multiply<float_of_float16>(lanes); }

float float_of_bfloat16(uint16_t x) { return bits<float>(static_cast<uint32_t>(x) << 16); }

uint16_t bfloat16_of(float x) {
  if (std::isnan(x)) return 0x7fff;  // as the card's conversion
  const auto word = bits<uint32_t>(x);
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

float float_of_float16(uint16_t x) {
  const int exponent = x >> 10 & 31, fraction = x & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent == 0
                         ? std::ldexp(static_cast<float>(fraction), -24)
                         : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return x & 0x8000 ? -size : size;
}

uint16_t float16_of(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (size >= 65520) return sign | 0x7c00;
  if (size == 0) return sign;
  int exponent = 0;
  std::frexp(size, &exponent);
  const int step = exponent < -13 ? -24 : exponent - 11;  // of the last place; subnormals share one
  const auto places = static_cast<int>(std::nearbyint(std::ldexp(size, -step)));
  // Where rounding made 2048 of 2047.5 the carry goes into the exponent, as it should.
  return static_cast<uint16_t>(sign | (step == -24 ? places : ((step + 25) << 10) + places - 1024));
}

}  // namespace cux::host
