// The dynamic 8-bit map of Dettmers et al. 2021 (https://arxiv.org/abs/2110.02861): seven decades from
// 1e-6 to 1, the n_i centres of equal parts of 0.1 … 1 in each, and 0 and 1:
//   10^(i−6)·(0.1 + 0.9·(j + ½)/n_i)     j < n_i, i < 7; n_i = 2^i with both signs, 2^(i+1) without
// The code of a value is its index in the sorted map. A map with signs holds the negatives of all
// but 1.
#pragma once

#include <cfloat>
#include <cstdint>
#include <limits>

#include "common/value.h"

namespace fulgurite {

struct alignas(16) DynamicMap {
  /// Cells are numbers that share the exponent and the leading seven bits below it, from 2^−23 to 1: so
  /// narrow that at most one middle between neighbours of the map lies in each.
  static constexpr int kCellShift = 16;
  static constexpr int32_t kFirstCell = (127 - 23) << 7, kCells = (23 << 7) + 1;

  float values[256];      // by code
  double middles[256];    // between magnitudes k and k + 1, exact; infinite after the last
  uint8_t guess[kCells];  // magnitudes whose upper middle lies surely below all of the cell
  int32_t zero;           // the code of 0, and the number of negative codes
};

namespace detail {

constexpr double kDecades[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};

/// The lower edge of a cell.
constexpr double cell_edge(int32_t cell) {
  const int32_t bits = DynamicMap::kFirstCell + cell;
  double edge = 1.0 + (bits & 127) / 128.0;
  for (int32_t e = bits >> 7; e < 127; ++e) edge /= 2;
  return edge;
}

}  // namespace detail

constexpr DynamicMap make_dynamic_map(bool is_signed) {
  DynamicMap map{};
  map.zero = is_signed ? 127 : 0;
  const int32_t magnitudes = 255 - map.zero;  // beside 0
  int32_t k = 1;
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << (is_signed ? i : i + 1);
    for (int j = 0; j < parts; ++j, ++k) {
      const double value = detail::kDecades[i] * (0.1 + 0.9 * (j + 0.5) / parts);
      map.values[map.zero + k] = static_cast<float>(value);
      if (is_signed) map.values[map.zero - k] = -static_cast<float>(value);
    }
  }
  map.values[255] = 1.0f;
  for (k = 0; k < 256; ++k)
    map.middles[k] =
        k < magnitudes
            ? 0.5 * (static_cast<double>(map.values[map.zero + k]) + map.values[map.zero + k + 1])
            : std::numeric_limits<double>::infinity();
  k = 0;
  for (int32_t cell = 1; cell < DynamicMap::kCells; ++cell) {
    const double edge = detail::cell_edge(cell) * (1 - 0x1p-22);  // for the rounding of a quotient
    while (map.middles[k] < edge) ++k;
    map.guess[cell] = static_cast<uint8_t>(k);
  }
  return map;
}

/// The cell of |x|/scale, rounded once; V: float, or a vector of it.
template <class Math, class V>
FULGURITE_HOST_DEVICE Integer<V> map_cell(V x, float scale) {
  using I = Integer<V>;
  const V quotient = Math::min(Math::abs(x) / scale, uniform<V>(1.0f));
  const I cell = (same_bits<I>(quotient) >> DynamicMap::kCellShift) - DynamicMap::kFirstCell;
  return cell > 0 ? cell : I{};
}

/// Of magnitude k of a map; sign: −1 for numbers below 0, else 0. A signed map lacks −1.
template <bool kSigned>
FULGURITE_HOST_DEVICE int32_t map_code(int32_t zero, int32_t k, int32_t sign) {
  const int32_t last = kSigned ? 128 + sign : 255;
  return zero + (((k < last ? k : last) ^ sign) - sign);
}

/// No block with such a largest magnitude has codes: it is 0, or of NaN or Inf all are NaN.
FULGURITE_HOST_DEVICE bool has_codes(float scale) { return scale > 0 && scale <= FLT_MAX; }

/// The nearest code of x in a block with this scale, the lower one of two equally near. A middle has 25 bits and a scale 24, so
/// their product is a float64.
template <bool kSigned, class Math>
FULGURITE_HOST_DEVICE int32_t nearest_code(const DynamicMap& map, float scale, float x) {
  const int32_t sign = kSigned && x < 0 ? -1 : 0;
  const int32_t k = map.guess[map_cell<Math>(x, scale)];
  const double magnitude = Math::abs(x), middle = map.middles[k] * static_cast<double>(scale);
  const bool above = sign ? magnitude >= middle : magnitude > middle;
  return map_code<kSigned>(map.zero, k + static_cast<int32_t>(above), sign);
}

}  // namespace fulgurite
