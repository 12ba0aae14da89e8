// Between memory and the blocks that the arithmetic works on.
//
// An operand that is dense and already in the arithmetic type is worked on where it lies; any other
// (16 bits, strides, a split master) passes through a block on the stack. So the arithmetic is
// written once, and the dtypes do not multiply.
#pragma once

#include "optim/cpu/kernels/params.h"
#include "optim/cpu/kernels/split.h"
#include "optim/cpu/kernels/step.h"
#include "optim/cpu/kernels/stochastic.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {

template <class S, class T>
void read_block(T* block, const S* from, int64_t stride, int64_t n) {
  using V = Vec<T, kLanes<T>>;
  S dense[kBlock];
  if (stride != 1) {
    for (int64_t i = 0; i < n; ++i) dense[i] = from[i * stride];
    from = dense;
  }
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(block + i, load_as<V>(from + i));
  if (i < n) store_first(block + i, load_first<V>(from + i, n - i), n - i);
}

template <class S, class T>
void write_block(S* to, int64_t stride, const T* block, int64_t n) {
  using V = Vec<T, kLanes<T>>;
  S dense[kBlock];
  S* const target = stride == 1 ? to : dense;
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store_as(target + i, load<V>(block + i));
  if (i < n) store_first(target + i, load_first<V>(block + i, n - i), n - i);
  if (stride != 1)
    for (int64_t k = 0; k < n; ++k) to[k * stride] = dense[k];
}

/// Runs visitor(S{}) for the storage types that go with the arithmetic type T.
template <class T, class Visitor>
FULGURITE_INLINE void with_storage(Dtype dtype, const Visitor& visitor) {
  constexpr bool kWide = sizeof(T) == 8;
  switch (dtype) {
    case Dtype::kFloat64:
      if constexpr (kWide) return visitor(double{});
      break;
    case Dtype::kFloat32: return visitor(float{});
    case Dtype::kBFloat16:
      if constexpr (!kWide) return visitor(BFloat16{});
      break;
    case Dtype::kFloat16:
      if constexpr (!kWide) return visitor(Half{});
      break;
  }
  __builtin_trap();  // no pair that the checks let through
}

/// One row of one tensor: element i of operand k lies at data[k] + i·stride[k].
template <class T>
class Row {
 public:
  Row(const AdamwTensor& tensor, const int64_t* offsets, const int64_t* strides)
      : tensor_(tensor), strides_(strides), index_(offsets[kIndex]) {
    for (int k = 0; k < kAdamwOperands; ++k)
      data_[k] = tensor.data[k] ? at(k, tensor.data[k], offsets[k]) : nullptr;
  }

  /// Operand k as T: where it lies, or read into `buffer`. Null if there is none.
  T* read(int k, T* buffer, int64_t n) const {
    if (!data_[k] || in_place(k)) return static_cast<T*>(data_[k]);
    with_storage<T>(tensor_.dtype[k], [&](auto s) {
      read_block(buffer, static_cast<const decltype(s)*>(data_[k]), strides_[k], n);
    });
    return buffer;
  }

  /// Operand k as T, or the exact value of the parameter, copied into `buffer`.
  void copy(int k, T* buffer, int64_t n) const { keep(read(k, buffer, n), buffer, n); }
  void copy_value(T* buffer, int64_t n) const { keep(read_value(buffer, n), buffer, n); }

  /// Operand k from `values`, unless that is where it lies.
  void write(int k, const T* values, int64_t n) const {
    if (!data_[k] || values == data_[k]) return;
    with_storage<T>(tensor_.dtype[k], [&](auto s) {
      write_block(static_cast<decltype(s)*>(data_[k]), strides_[k], values, n);
    });
  }

  /// The exact value of the parameter, from its master where it has one.
  T* read_value(T* buffer, int64_t n) const {
    if (!tensor_.split) return read(tensor_.data[kMaster] ? kMaster : kParam, buffer, n);
    if constexpr (sizeof(T) == 4) {
      uint16_t high[kBlock];
      int16_t low[kBlock];
      constexpr int W = kLanes<float>;
      const bool in_place = strides_[kParam] == 1 && strides_[kMaster] == 1;
      if (!in_place) {
        gather(kParam, high, n);
        gather(kMaster, low, n);
      }
      const uint16_t* const from_high = in_place ? static_cast<uint16_t*>(data_[kParam]) : high;
      const int16_t* const from_low = in_place ? static_cast<int16_t*>(data_[kMaster]) : low;
      int64_t i = 0;
      for (; i + W <= n; i += W)
        store(buffer + i, value_of<W>(load<Vec<uint16_t, W>>(from_high + i),
                                      load<Vec<int16_t, W>>(from_low + i)));
      for (; i < n; ++i)
        buffer[i] = value_of<4>(Vec<uint16_t, 4>{from_high[i]}, Vec<int16_t, 4>{from_low[i]})[0];
    }
    return buffer;
  }

  /// The new value: into the master, and rounded into the parameter.
  void write_value(const RoundingSeed& seed, const T* values, int64_t n) const {
    if (tensor_.split) return write_split(values, n);
    if (tensor_.stochastic)
      write_stochastic(seed, values, n);
    else
      write(kParam, values, n);
    write(kMaster, values, n);
  }

  void zero(int k, int64_t n) const {
    with_storage<T>(tensor_.dtype[k], [&](auto s) {
      using S = decltype(s);
      for (int64_t i = 0; i < n; ++i) static_cast<S*>(data_[k])[i * strides_[k]] = S{};
    });
  }

  /// Asks for the lines of the n elements after the next n: the arithmetic of a block takes longer
  /// than memory does to answer, but hardware looks no further than a page.
  void prefetch(int64_t n) const {
    for (int k = 0; k < kAdamwOperands; ++k) {
      if (!data_[k] || strides_[k] != 1) continue;
      const char* const next = static_cast<const char*>(data_[k]) + n * tensor_.bytes[k];
      for (int64_t byte = 0; byte < n * tensor_.bytes[k]; byte += 64)
        __builtin_prefetch(next + byte);
    }
  }

  void advance(int64_t n) {
    for (int k = 0; k < kAdamwOperands; ++k)
      if (data_[k]) data_[k] = at(k, data_[k], n * strides_[k]);
    index_ += n * strides_[kIndex];
  }

  /// n elements of operand k, in its own type S.
  template <class S>
  void gather(int k, S* buffer, int64_t n) const {
    const S* const from = static_cast<const S*>(data_[k]);
    if (strides_[k] == 1) return keep(from, buffer, n);
    for (int64_t i = 0; i < n; ++i) buffer[i] = from[i * strides_[k]];
  }
  template <class S>
  void scatter(int k, const S* from, int64_t n) const {
    S* const to = static_cast<S*>(data_[k]);
    if (strides_[k] == 1) return keep(from, to, n);
    for (int64_t i = 0; i < n; ++i) to[i * strides_[k]] = from[i];
  }

 private:
  bool in_place(int k) const {
    return strides_[k] == 1 &&
           tensor_.dtype[k] == (sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32);
  }

  template <class S>
  static void keep(const S* from, S* to, int64_t n) {
    if (from != to) __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(S));
  }

  void* at(int k, void* data, int64_t offset) const {
    return static_cast<char*>(data) + offset * tensor_.bytes[k];
  }

  void write_split(const T* values, int64_t n) const {
    if constexpr (sizeof(T) == 4) {
      uint16_t high[kBlock];
      int16_t low[kBlock];
      constexpr int W = kLanes<float>;
      const bool in_place = strides_[kParam] == 1 && strides_[kMaster] == 1;
      uint16_t* const to_high = in_place ? static_cast<uint16_t*>(data_[kParam]) : high;
      int16_t* const to_low = in_place ? static_cast<int16_t*>(data_[kMaster]) : low;
      int64_t i = 0;
      for (; i + W <= n; i += W) {
        const SplitHalves<W> halves = split<W>(load<Vec<float, W>>(values + i));
        store(to_high + i, halves.high);
        store(to_low + i, halves.low);
      }
      for (; i < n; ++i) {
        const SplitHalves<4> halves = split<4>(splat<Vec<float, 4>>(values[i]));
        to_high[i] = halves.high[0];
        to_low[i] = halves.low[0];
      }
      if (!in_place) {
        scatter(kParam, high, n);
        scatter(kMaster, low, n);
      }
    }
  }

  void write_stochastic(const RoundingSeed& seed, const T* values, int64_t n) const {
    if constexpr (sizeof(T) == 4) {
      uint32_t buffer[kWords];
      const uint32_t* const words =
          words_of(seed, tensor_.key, index_, strides_[kIndex], n, buffer);
      with_storage<T>(tensor_.dtype[kParam], [&](auto s) {
        using S = decltype(s);
        if constexpr (sizeof(S) == 2) {
          S rounded[kBlock];
          const bool in_place = strides_[kParam] == 1;
          round_block(in_place ? static_cast<S*>(data_[kParam]) : rounded, values, words, n);
          if (!in_place) scatter(kParam, rounded, n);
        }
      });
    }
  }

  const AdamwTensor& tensor_;
  const int64_t* strides_;
  int64_t index_;
  void* data_[kAdamwOperands];
};

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
