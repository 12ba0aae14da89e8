// One AdamW step, in this order and with these contractions:
//   g  = grad·factor                              factor: the multiplier, negated to maximize
//   p  = p·(1 − lr·wd)                            decoupled; else g = fma(wd, p, g)
//   m  = fma(1−β1, g − m, m)                      if 1−β1 < ½, else fma(−β1, g − m, g)
//   v  = fma((1−β2)·g, g, β2·v)                   vmax = max(vmax, v) for amsgrad
//   p −= (step_size·m) / (√v/correction + eps)
// Every operation is rounded once and none depends on the vector width, so all instruction sets
// give the same bits.
//
// An operand that is dense and already in the arithmetic type is worked on where it lies; any other
// (16 bits, strides, a split master) passes through a block on the stack. So the arithmetic is
// written once, and the dtypes do not multiply.

#include "optim/cpu/params.h"
#include "optim/cpu/split.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
namespace {

constexpr int64_t kBlock = 256;

/// The scalars in the arithmetic type T.
template <class T>
struct Scalars {
  explicit Scalars(const AdamwScalars& s)
      : grad_factor(static_cast<T>(s.grad_factor)),
        decay(static_cast<T>(s.decay)),
        weight_decay(static_cast<T>(s.weight_decay)),
        exp_avg_weight(static_cast<T>(s.exp_avg_weight)),
        exp_avg_sq_weight(static_cast<T>(s.exp_avg_sq_weight)),
        beta2(static_cast<T>(s.beta2)),
        step_size(static_cast<T>(s.step_size)),
        correction(static_cast<T>(s.correction)),
        eps(static_cast<T>(s.eps)),
        ema_weight(static_cast<T>(s.ema_weight)),
        from_exp_avg(s.from_exp_avg) {}
  T grad_factor, decay, weight_decay, exp_avg_weight, exp_avg_sq_weight, beta2, step_size,
      correction, eps, ema_weight;
  bool from_exp_avg;
};

template <class V>
struct Element4 {
  V p, m, v, vmax;
};

template <bool kDecayGradient, bool kAmsgrad, class T, class V = Native<T>>
FULGURITE_INLINE Element4<V> update(const Scalars<T>& s, V p, V grad, V m, V v, V vmax) {
  V g = grad * s.grad_factor;
  if constexpr (kDecayGradient)
    g = fma(splat<V>(s.weight_decay), p, g);
  else
    p = p * s.decay;
  m = fma(splat<V>(s.exp_avg_weight), g - m, s.from_exp_avg ? m : g);
  v = fma(s.exp_avg_sq_weight * g, g, s.beta2 * v);
  if constexpr (kAmsgrad) vmax = vmax == vmax ? max(vmax, v) : vmax;  // NaN in either one stays
  const V root = sqrt(kAmsgrad ? vmax : v);
  p = p - (s.step_size * m) / (root / s.correction + s.eps);
  return {p, m, v, vmax};
}

/// A block's operands in the arithmetic type.
template <class T>
struct Block {
  T *p, *m, *v, *vmax, *ema;
  const T* g;
};

template <bool kDecayGradient, bool kAmsgrad, class T>
void update_block(Scalars<T> s, Block<T> b, int64_t n) {  // by value: nothing written aliases them
  using V = Native<T>;
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const auto r =
        update<kDecayGradient, kAmsgrad>(s, load<V>(b.p + i), load<V>(b.g + i), load<V>(b.m + i),
                                         load<V>(b.v + i), kAmsgrad ? load<V>(b.vmax + i) : V{});
    store(b.p + i, r.p);
    store(b.m + i, r.m);
    store(b.v + i, r.v);
    if constexpr (kAmsgrad) store(b.vmax + i, r.vmax);
  }
  if (const int64_t rest = n - i; rest > 0) {
    const auto r = update<kDecayGradient, kAmsgrad>(
        s, load_first<V>(b.p + i, rest), load_first<V>(b.g + i, rest), load_first<V>(b.m + i, rest),
        load_first<V>(b.v + i, rest), kAmsgrad ? load_first<V>(b.vmax + i, rest) : V{});
    store_first(b.p + i, r.p, rest);
    store_first(b.m + i, r.m, rest);
    store_first(b.v + i, r.v, rest);
    if constexpr (kAmsgrad) store_first(b.vmax + i, r.vmax, rest);
  }
}

template <class T>
void update_block(const Scalars<T>& s, const Block<T>& b, int64_t n) {
  const bool decay_gradient = s.weight_decay != 0;
  if (decay_gradient && b.vmax) return update_block<true, true>(s, b, n);
  if (decay_gradient) return update_block<true, false>(s, b, n);
  if (b.vmax) return update_block<false, true>(s, b, n);
  update_block<false, false>(s, b, n);
}

/// ema += (1 − d)·(p − ema)
template <class T>
void update_ema(const Scalars<T>& s, const Block<T>& b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) b.ema[i] = b.ema[i] + s.ema_weight * (b.p[i] - b.ema[i]);
}

// ---- between memory and blocks -----------------------------------------------------------------

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
  if constexpr (sizeof(T) == 8)
    return dtype == Dtype::kFloat64 ? visitor(double{}) : visitor(float{});
  if constexpr (sizeof(T) == 4) {
    switch (dtype) {
      case Dtype::kBFloat16: return visitor(BFloat16{});
      case Dtype::kFloat16: return visitor(Half{});
      default: return visitor(float{});
    }
  }
}

/// One row of one tensor: element i of operand k lies at data[k] + i·stride[k].
template <class T>
class Row {
 public:
  Row(const AdamwTensor& tensor, const int64_t* offsets, const int64_t* strides)
      : tensor_(tensor), strides_(strides) {
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

  /// Operand k from `values`, unless that is where it lies.
  void write(int k, const T* values, int64_t n) const {
    if (!data_[k] || values == data_[k]) return;
    with_storage<T>(tensor_.dtype[k], [&](auto s) {
      write_block(static_cast<decltype(s)*>(data_[k]), strides_[k], values, n);
    });
  }

  void read_split(T* buffer, int64_t n) const {
    if constexpr (sizeof(T) == 4) {
      constexpr int W = kLanes<float>;
      const uint16_t* const high = static_cast<const uint16_t*>(data_[kParam]);
      const int16_t* const low = static_cast<const int16_t*>(data_[kMaster]);
      for (int64_t i = 0; i < n; i += W) {
        Vec<uint16_t, W> h{};
        Vec<int16_t, W> l{};
        for (int64_t j = 0; j < W && i + j < n; ++j)
          h[j] = high[(i + j) * strides_[kParam]], l[j] = low[(i + j) * strides_[kMaster]];
        store(buffer + i, join<W>(h, l));
      }
    }
  }

  void write_split(const T* values, int64_t n) const {
    if constexpr (sizeof(T) == 4) {
      constexpr int W = kLanes<float>;
      uint16_t* const high = static_cast<uint16_t*>(data_[kParam]);
      int16_t* const low = static_cast<int16_t*>(data_[kMaster]);
      for (int64_t i = 0; i < n; i += W) {
        const SplitHalves<W> halves = split<W>(load<Vec<float, W>>(values + i));
        for (int64_t j = 0; j < W && i + j < n; ++j)
          high[(i + j) * strides_[kParam]] = halves.high[j],
                         low[(i + j) * strides_[kMaster]] = halves.low[j];
      }
    }
  }

  void zero(int k, int64_t n) const {
    with_storage<T>(tensor_.dtype[k], [&](auto s) {
      using S = decltype(s);
      for (int64_t i = 0; i < n; ++i) static_cast<S*>(data_[k])[i * strides_[k]] = S{};
    });
  }

  void advance(int64_t n) {
    for (int k = 0; k < kAdamwOperands; ++k)
      if (data_[k]) data_[k] = at(k, data_[k], n * strides_[k]);
  }

 private:
  bool in_place(int k) const {
    return strides_[k] == 1 &&
           tensor_.dtype[k] == (sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32);
  }

  void* at(int k, void* data, int64_t offset) const {
    constexpr int64_t kBytes[] = {8, 4, 2, 2};  // by Dtype
    const int64_t bytes =
        k == kMaster && tensor_.split ? 2 : kBytes[static_cast<int>(tensor_.dtype[k])];
    return static_cast<char*>(data) + offset * bytes;
  }

  const AdamwTensor& tensor_;
  const int64_t* strides_;
  void* data_[kAdamwOperands];
};

template <class T>
void update_row(const AdamwParams& p, const AdamwTensor& tensor, const int64_t* offsets,
                const int64_t* strides, int64_t n) {
  alignas(64) T buffers[6][kBlock];
  const Scalars<T> scalars(tensor.scalars);
  const int source = tensor.data[kMaster] ? kMaster : kParam;
  Row<T> row(tensor, offsets, strides);
  for (int64_t done = 0; done < n; done += kBlock) {
    const int64_t size = n - done < kBlock ? n - done : kBlock;
    Block<T> b{};
    b.p = buffers[0];
    if (tensor.split)
      row.read_split(b.p, size);
    else
      b.p = row.read(source, buffers[0], size);
    b.g = row.read(kGrad, buffers[1], size);
    b.m = row.read(kExpAvg, buffers[2], size);
    b.v = row.read(kExpAvgSq, buffers[3], size);
    b.vmax = row.read(kMaxExpAvgSq, buffers[4], size);
    b.ema = row.read(kEma, buffers[5], size);

    update_block(scalars, b, size);
    if (b.ema) update_ema(scalars, b, size);

    if (tensor.split) {
      row.write_split(b.p, size);
    } else {
      row.write(kParam, b.p, size);
      row.write(kMaster, b.p, size);
    }
    row.write(kExpAvg, b.m, size);
    row.write(kExpAvgSq, b.v, size);
    row.write(kMaxExpAvgSq, b.vmax, size);
    row.write(kEma, b.ema, size);
    row.write(kCopy, b.p, size);
    if (p.zero_grads) row.zero(kGrad, size);
    row.advance(size);
  }
}

}  // namespace

void adamw_update(const AdamwParams& p, int64_t first, int64_t last) {
  walk_tensors(p.walks, p.count, first, last, [&](int64_t t, int64_t begin, int64_t end) {
    const AdamwTensor& tensor = p.tensors[t];
    walk_rows<kAdamwOperands>(p.walks[t], p.layouts, begin, end,
                              [&](const int64_t* offsets, const int64_t* strides, int64_t n) {
                                if (tensor.dtype[kParam] == Dtype::kFloat64)
                                  update_row<double>(p, tensor, offsets, strides, n);
                                else
                                  update_row<float>(p, tensor, offsets, strides, n);
                              });
  });
}

}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite
