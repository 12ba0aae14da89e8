// The step of dense parameters with gradients of their own type, float32 or bfloat16, straight from
// memory to memory. Passing 16-bit operands through a block, as rows.h does, takes as long as the
// arithmetic. The formula is rules/step.h's.
#pragma once

#include "optim/cpu/kernels/split.h"
#include "optim/cpu/kernels/step.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

enum class Master { kNone, kSplit, kWide };

/// One row, everything adjacent; S is the type of parameter and gradient, M of the moments. Only
/// bfloat16 has masters.
template <class S, class M>
struct DirectRow {
  S* param;
  void* master;
  const S* grad;
  M *exp_avg, *exp_avg_sq;

  template <Master kMaster, class V>
  FULGURITE_INLINE V value(int64_t i) const {
    if constexpr (kMaster == Master::kWide) return load<V>(static_cast<float*>(master) + i);
    if constexpr (kMaster == Master::kNone) return load_as<V>(param + i);
    if constexpr (kMaster == Master::kSplit) {
      constexpr int W = kWidth<V>;
      return value_of<W>(load<Vec<uint16_t, W>>(param + i),
                         load<Vec<int16_t, W>>(static_cast<int16_t*>(master) + i));
    }
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
template <bool kDecayGradient, Master kMaster, class S, class M>
int64_t update_direct(StepNumbers<float> s, DirectRow<S, M> row, int64_t n) {
  using V = Native<float>;
  constexpr int W = kWidth<V>;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    row.prefetch(i + kBlock);
    const auto r = step_element<VectorMath>(
        s, kDecayGradient, false, row.template value<kMaster, V>(i), load_as<V>(row.grad + i),
        load_as<V>(row.exp_avg + i), load_as<V>(row.exp_avg_sq + i), V{});
    row.template set_value<kMaster>(i, r.p);
    store_as(row.exp_avg + i, r.m);
    store_as(row.exp_avg_sq + i, r.v);
  }
  return i;
}

template <Master kMaster, class S, class M>
int64_t update_direct(const StepNumbers<float>& s, const DirectRow<S, M>& row, int64_t n) {
  return s.weight_decay != 0 ? update_direct<true, kMaster>(s, row, n)
                             : update_direct<false, kMaster>(s, row, n);
}

template <class S, class M>
int64_t update_direct(const StepNumbers<float>& s, const AdamwTensor& tensor,
                      const int64_t* offsets, int64_t n) {
  const auto at = [&](int k) -> void* {
    return static_cast<char*>(tensor.data[k]) + offsets[k] * tensor.bytes[k];
  };
  const DirectRow<S, M> row{
      static_cast<S*>(at(kParam)), tensor.data[kMaster] ? at(kMaster) : nullptr,
      static_cast<S*>(at(kGrad)), static_cast<M*>(at(kExpAvg)), static_cast<M*>(at(kExpAvgSq))};
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (tensor.split) return update_direct<Master::kSplit>(s, row, n);
    if (row.master) return update_direct<Master::kWide>(s, row, n);
  }
  return update_direct<Master::kNone>(s, row, n);
}

/// Updates as much of a row as this file serves, from its beginning: how many elements.
inline int64_t update_direct(const AdamwProblem& p, const AdamwTensor& tensor,
                             const int64_t* offsets, const int64_t* strides, int64_t n) {
  if (p.zero_grads || tensor.stochastic) return 0;
  for (const int k : {kMaxExpAvgSq, kCopy, kEma})
    if (tensor.data[k]) return 0;
  for (const int k : {kParam, kGrad, kExpAvg, kExpAvgSq, kMaster})
    if (tensor.data[k] && strides[k] != 1) return 0;
  const auto are = [&](int one, int other, Dtype dtype) {
    return tensor.dtype[one] == dtype && tensor.dtype[other] == dtype;
  };
  const StepNumbers<float> scalars(p.scalars[tensor.scalars]);
  const bool wide = are(kExpAvg, kExpAvgSq, Dtype::kFloat32);
  if (are(kParam, kGrad, Dtype::kFloat32) && wide && !tensor.data[kMaster])
    return update_direct<float, float>(scalars, tensor, offsets, n);
  if (!are(kParam, kGrad, Dtype::kBFloat16)) return 0;
  if (wide) return update_direct<BFloat16, float>(scalars, tensor, offsets, n);
  if (are(kExpAvg, kExpAvgSq, Dtype::kBFloat16))
    return update_direct<BFloat16, BFloat16>(scalars, tensor, offsets, n);
  return 0;
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
