// The step of dense bfloat16 parameters with bfloat16 gradients, straight from memory to memory.
// Passing each operand through a block, as rows.h does, takes as long as the arithmetic. The formula
// is step.h's.
#pragma once

#include "optim/cpu/split.h"
#include "optim/cpu/step.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

enum class Master { kNone, kSplit, kWide };

/// One row, everything adjacent; M is the type of the moments.
template <class M>
struct DirectRow {
  BFloat16* param;
  void* master;
  const BFloat16* grad;
  M *exp_avg, *exp_avg_sq;

  template <Master kMaster, class V>
  FULGURITE_INLINE V value(int64_t i) const {
    if constexpr (kMaster == Master::kWide) return load<V>(static_cast<float*>(master) + i);
    if constexpr (kMaster == Master::kNone) return load_as<V>(param + i);
    constexpr int W = kWidth<V>;
    return join<W>(load<Vec<uint16_t, W>>(param + i),
                   load<Vec<int16_t, W>>(static_cast<int16_t*>(master) + i));
  }

  template <Master kMaster, class V>
  FULGURITE_INLINE void set_value(int64_t i, V p) const {
    if constexpr (kMaster == Master::kSplit) {
      const auto halves = split<kWidth<V>>(p);
      store(param + i, halves.high);
      store(static_cast<int16_t*>(master) + i, halves.low);
    } else {
      store_as(param + i, p);
      if constexpr (kMaster == Master::kWide) store(static_cast<float*>(master) + i, p);
    }
  }

  FULGURITE_INLINE void prefetch(int64_t i) const {
    __builtin_prefetch(param + i);
    __builtin_prefetch(grad + i);
    __builtin_prefetch(exp_avg + i);
    __builtin_prefetch(exp_avg_sq + i);
    if (master) __builtin_prefetch(static_cast<char*>(master) + 2 * i);
  }
};

/// Updates whole vectors; how many elements these are.
template <bool kDecayGradient, Master kMaster, class M>
int64_t update_direct(Scalars<float> s, DirectRow<M> row, int64_t n) {
  using V = Native<float>;
  constexpr int W = kWidth<V>;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    row.prefetch(i + kBlock);
    const auto r = update<kDecayGradient, false>(
        s, row.template value<kMaster, V>(i), load_as<V>(row.grad + i), load_as<V>(row.exp_avg + i),
        load_as<V>(row.exp_avg_sq + i), V{});
    row.template set_value<kMaster>(i, r.p);
    store_as(row.exp_avg + i, r.m);
    store_as(row.exp_avg_sq + i, r.v);
  }
  return i;
}

template <Master kMaster, class M>
int64_t update_direct(const Scalars<float>& s, const DirectRow<M>& row, int64_t n) {
  return s.weight_decay != 0 ? update_direct<true, kMaster>(s, row, n)
                             : update_direct<false, kMaster>(s, row, n);
}

template <class M>
int64_t update_direct(const Scalars<float>& s, const AdamwTensor& tensor, const int64_t* offsets,
                      int64_t n) {
  const auto at = [&](int k) {
    return static_cast<char*>(tensor.data[k]) + offsets[k] * tensor.bytes[k];
  };
  const DirectRow<M> row{reinterpret_cast<BFloat16*>(at(kParam)),
                         tensor.data[kMaster] ? at(kMaster) : nullptr,
                         reinterpret_cast<BFloat16*>(at(kGrad)), reinterpret_cast<M*>(at(kExpAvg)),
                         reinterpret_cast<M*>(at(kExpAvgSq))};
  if (tensor.split) return update_direct<Master::kSplit>(s, row, n);
  return row.master ? update_direct<Master::kWide>(s, row, n)
                    : update_direct<Master::kNone>(s, row, n);
}

/// Updates as much of a row as this file serves, from its beginning: how many elements.
inline int64_t update_direct(const AdamwParams& p, const AdamwTensor& tensor,
                             const int64_t* offsets, const int64_t* strides, int64_t n) {
  if (p.zero_grads || tensor.stochastic) return 0;
  for (const int k : {kMaxExpAvgSq, kCopy, kEma})
    if (tensor.data[k]) return 0;
  for (const int k : {kParam, kGrad, kExpAvg, kExpAvgSq, kMaster})
    if (tensor.data[k] && strides[k] != 1) return 0;
  const auto is = [&](int k, Dtype dtype) { return tensor.dtype[k] == dtype; };
  if (!is(kParam, Dtype::kBFloat16) || !is(kGrad, Dtype::kBFloat16)) return 0;
  const Scalars<float> scalars(p.scalars[tensor.scalars]);
  if (is(kExpAvg, Dtype::kBFloat16) && is(kExpAvgSq, Dtype::kBFloat16))
    return update_direct<BFloat16>(scalars, tensor, offsets, n);
  if (is(kExpAvg, Dtype::kFloat32) && is(kExpAvgSq, Dtype::kFloat32))
    return update_direct<float>(scalars, tensor, offsets, n);
  return 0;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
