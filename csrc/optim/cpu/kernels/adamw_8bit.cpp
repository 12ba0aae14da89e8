// AdamW with 8-bit states. A block's moments are read as map[code]·scale, updated in the arithmetic
// type, and written as the largest magnitude of the block and the codes of the nearest
//   code = argmin_k |x/scale − map[k]|     the lower one of two equally near
// as nearest_code decides it (rules/dynamic_map.h), but in the arithmetic type, and for all elements at once. The update itself
// uses the moments before they are rounded to codes.
//
// Reads: gradients, parameters or masters, codes and scales of the moments.
// Writes: the same but the gradients.
// Task: a range of positions (simd/walk.h) from the edge of a block to the edge of another: a block's scale is its own.
// Order of sums: none; a block's scale is a maximum.

#include "optim/cpu/kernels/rows.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

template <class T>
void dequantize(const DynamicMap& map, float scale, const uint8_t* codes, T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    x[i] = static_cast<T>(map.values[codes[i]]) * static_cast<T>(scale);
}

/// max|x|; NaN if one is.
template <class T>
float largest(const T* x, int64_t n) {
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  V most{};
  IntOf<V> nan{};
  for (int64_t i = 0; i < n; i += W) {
    const V v = abs(load_first<V>(x + i, n - i));
    most = max(v, most);
    nan |= v != v;
  }
  T result = max_lane(most);
  for (int k = 0; k < W; ++k)
    if (nan[k]) result = std::numeric_limits<T>::quiet_NaN();
  return static_cast<float>(result);
}

/// A magnitude belongs to number k + 1 rather than k of the map iff it is above bounds[k]: the
/// largest T that is not above the middle times the scale, or for negative numbers, which two
/// equally near codes draw away from zero, the largest one below it.
template <bool kSigned, class T>
struct Bounds {
  alignas(64) T of[kSigned ? 512 : 256];  // of positive numbers, then of negative ones

  Bounds(const DynamicMap& map, float scale) {
    constexpr int W = kLanes<double>;
    for (int k = 0; k < 256 - map.zero; k += W) {
      const Vec<double, W> middle =
          load<Vec<double, W>>(map.middles + k) * static_cast<double>(scale);
      const auto nearest = convert<Vec<T, W>>(middle);
      const auto found = convert<Vec<double, W>>(nearest);
      store(of + k, lowered(nearest, found > middle));
      if constexpr (kSigned) store(of + 256 + k, lowered(nearest, found >= middle));
    }
  }

 private:
  /// The next smaller number where the mask is set.
  template <class V, class Mask>
  static FULGURITE_INLINE V lowered(V x, Mask mask) {
    return bit_cast<V>(bit_cast<IntOf<V>>(x) + convert<IntOf<V>>(mask));
  }
};

/// For each of n ≤ kBlock elements the cell of |x|/scale, rounded once, and −1 where x has a sign.
template <class T>
void find_cells(const T* x, float scale, int32_t* cells, int32_t* signs, int64_t n) {
  constexpr int W = kLanes<float>;
  using V = Vec<float, W>;
  for (int64_t i = 0; i < n; i += W) {
    const V value = convert<V>(load<Vec<T, W>>(x + i));
    store(cells + i, map_cell<VectorMath>(value, scale));
    store(signs + i, bit_cast<IntOf<V>>(value) >> 31);
  }
}

/// Codes of n ≤ kBlock elements, in memory of kBlock; their scale.
template <bool kSigned, class T>
float quantize(const DynamicMap& map, const T* x, uint8_t* codes, int64_t n) {
  const float scale = largest(x, n);
  if (!has_codes(scale)) {
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(map.zero);
    return scale;
  }
  const Bounds<kSigned, T> bounds(map, scale);
  int32_t cells[kBlock], signs[kBlock], k[kBlock];
  alignas(64) T bound[kBlock];
  find_cells(x, scale, cells, signs, n);
  for (int64_t i = 0; i < n; ++i) {  // no branches on signs: they are as good as random
    k[i] = map.guess[cells[i]];
    bound[i] = bounds.of[k[i] + (kSigned ? 256 & signs[i] : 0)];
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t found = k[i] + static_cast<int32_t>((x[i] < 0 ? -x[i] : x[i]) > bound[i]);
    codes[i] = static_cast<uint8_t>(map_code<kSigned>(map.zero, found, kSigned ? signs[i] : 0));
  }
  return scale;
}

/// Elements begin … begin + n of one tensor, n ≤ kBlock.
template <class T>
void update_codes(const Adamw8bitProblem& p, int64_t t, int64_t begin, int64_t n) {
  const AdamwTensor& tensor = p.step.tensors[t];
  const Walk& walk = p.step.walks[t];
  const BlockScales& scales = p.scales[t];
  float& m_scale = scales.exp_avg[begin / kBlock * scales.exp_avg_stride];
  float& v_scale = scales.exp_avg_sq[begin / kBlock * scales.exp_avg_sq_stride];
  alignas(64) T value[kBlock], grad[kBlock], m[kBlock], v[kBlock];
  uint8_t m_codes[kBlock], v_codes[kBlock];
  const auto for_rows = [&](const auto& visit) {
    int64_t done = 0;
    walk_rows<kAdamwOperands>(walk, p.step.layouts, begin, begin + n,
                              [&](const int64_t* offsets, const int64_t* strides, int64_t size) {
                                visit(Row<T>(tensor, offsets, strides), done, size);
                                done += size;
                              });
  };

  for_rows([&](const Row<T>& row, int64_t at, int64_t size) {
    row.copy_value(value + at, size);
    row.copy(kGrad, grad + at, size);
    row.gather(kExpAvg, m_codes + at, size);
    row.gather(kExpAvgSq, v_codes + at, size);
  });
  dequantize(*p.exp_avg_map, m_scale, m_codes, m, n);
  dequantize(*p.exp_avg_sq_map, v_scale, v_codes, v, n);
  update_block(StepNumbers<T>(p.step.scalars[tensor.scalars]),
               {value, m, v, nullptr, nullptr, grad}, n);
  m_scale = quantize<true>(*p.exp_avg_map, m, m_codes, n);
  v_scale = quantize<false>(*p.exp_avg_sq_map, v, v_codes, n);
  for_rows([&](const Row<T>& row, int64_t at, int64_t size) {
    row.write_value(p.step.seed, value + at, size);
    row.scatter(kExpAvg, m_codes + at, size);
    row.scatter(kExpAvgSq, v_codes + at, size);
  });
}

}  // namespace

void adamw_8bit_update(const Adamw8bitProblem& p, int64_t first, int64_t last) {
  const AdamwProblem& step = p.step;
  walk_tensors(step.walks, step.count, first, last, [&](int64_t t, int64_t begin, int64_t end) {
    const bool wide = step.tensors[t].dtype[kParam] == Dtype::kFloat64;
    for (; begin < end; begin += kBlock) {
      const int64_t n = end - begin < kBlock ? end - begin : kBlock;
      wide ? update_codes<double>(p, t, begin, n) : update_codes<float>(p, t, begin, n);
    }
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
