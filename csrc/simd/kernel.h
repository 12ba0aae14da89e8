// What a kernel needs beside vectors: its storage type from a Dtype, and pieces of its task's
// scratch memory.
#pragma once

#include "simd/convert.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

/// Runs visitor(S{}) for the storage type S of dtype.
template <class Visitor>
FULGURITE_INLINE void with_storage(Dtype dtype, const Visitor& visitor) {
#if FULGURITE_PAIR_PRODUCTS
  visitor(BFloat16{});
#else
  switch (dtype) {
#if FULGURITE_FLOAT64
    case Dtype::kFloat64: return visitor(double{});
#else
    case Dtype::kFloat64: __builtin_trap();  // a set that serves float64 is called (cpu/isa.h)
#endif
    case Dtype::kFloat32: return visitor(float{});
    case Dtype::kBFloat16: return visitor(BFloat16{});
    case Dtype::kFloat16: return visitor(Half{});
  }
#endif
}

/// Hands out aligned pieces of a task's scratch memory; run with null it measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t n) {
    T* const p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

/// The first n lanes, all of them if n is more; rounded once to the storage type.
template <class S, class V>
FULGURITE_INLINE void store_up_to(S* to, V v, int64_t n) {
  if (n >= kWidth<V>)
    store_as(to, v);
  else
    store_first(to, v, n);
}

/// n contiguous results, scaled, rounded once to the storage type.
template <class S, class T>
inline void store_row(S* to, const T* from, int64_t n, T scale = 1) {
  using V = Native<T>;
  int64_t c = 0;
  for (; c + kLanes<T> <= n; c += kLanes<T>) store_as(to + c, load<V>(from + c) * scale);
  if (c < n) store_first(to + c, load<V>(from + c) * scale, n - c);
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
