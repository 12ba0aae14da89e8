// Between storage and float32: what AdamW reads and writes of a unit.
#pragma once

#include "cuda/exact_math.h"
#include "optim/cuda/kernels/units.cuh"
#include "optim/rules/split.h"

namespace fulgurite::cuda {

template <int n>
__device__ float number(const Lane<n>& x, int i) {
  return same_bits<float>(x.word[i]);
}

/// Of a number's 16 bits its 32, and its 16 bits rounded to nearest.
__device__ inline uint32_t widened(Dtype dtype, uint32_t bits) {
  float x, nothing;
  if (dtype == Dtype::kBFloat16)
    cux::unpack2<BFloat16>(bits, x, nothing);
  else
    cux::unpack2<Half>(bits, x, nothing);
  return same_bits<uint32_t>(x);
}
__device__ inline uint32_t narrowed(Dtype dtype, float x) {
  return dtype == Dtype::kBFloat16 ? cux::pack2<BFloat16>(x, 0.f) : cux::pack2<Half>(x, 0.f);
}

/// A unit of all operands of a tensor.
template <class Unit>
class Operands {
 public:
  static constexpr int kPerLane = Unit::kPerLane;
  using Own = Lane<kPerLane>;

  __device__ Operands(const AdamwTable& table, int64_t t, int64_t begin, int lane)
      : unit_(table, table.entries[t], begin, lane),
        entry_(table.entries[t]),
        grad_(table.grads[t]),
        formats_(entry_.formats),
        present_(entry_.present) {}

  __device__ Unit& unit() { return unit_; }
  __device__ bool has(int k) const { return present_ >> k & 1; }
  __device__ Dtype dtype(int k) const { return format(k).dtype; }

  /// The piece that the unit is at, as memory has it.
  __device__ void load(int k, Own& x) const {
    if (dtype(k) == Dtype::kFloat32)
      load<4>(k, x);
    else
      load<2>(k, x);
  }
  template <int kBytes>
  __device__ void load(int k, Own& x) const {
    unit_.template load<kBytes>(k, base(k), x);
  }
  template <int kBytes>
  __device__ void store(int k, const Own& x) const {
    unit_.template store<kBytes>(k, base(k), x);
  }

  /// All that load() brought, to numbers.
  __device__ void widen(int k, Own& x) const {
    if (dtype(k) == Dtype::kFloat32) return;
    unit_.template unpack<2>(x);
    CUX_UNROLL
    for (int i = 0; i < kPerLane; ++i) x.word[i] = widened(dtype(k), x.word[i]);
  }
  /// The piece that the unit is at, from numbers.
  __device__ void write(int k, Own x) const {
    if (dtype(k) == Dtype::kFloat32) return store<4>(k, x);
    for_piece([&](int i) { x.word[i] = narrowed(dtype(k), number(x, i)); });
    write_bits<2>(k, x);
  }
  /// The same from kBytes for each element.
  template <int kBytes>
  __device__ void write_bits(int k, Own x) const {
    unit_.template pack<kBytes>(x);
    store<kBytes>(k, x);
  }

  template <class Visit>
  __device__ void for_pieces(const Visit& visit) {
    CUX_UNROLL
    for (int piece = 0; piece < Unit::kPieces; ++piece) {
      unit_.go_to(piece);
      visit();
    }
  }
  template <class Visit>
  __device__ void for_piece(const Visit& visit) const {
    CUX_UNROLL
    for (int i = 0; i < Unit::kPiece; ++i) visit(unit_.first() + i);
  }

 private:
  __device__ OperandFormat format(int k) const { return OperandFormat::of(formats_, k); }

  /// Asked for at each access: eight addresses are sixteen registers.
  __device__ unsigned char* base(int k) const {
    return unit_.base(k == kGrad ? grad_ : entry_.data[k], format(k).shift);
  }

  Unit unit_;
  const AdamwEntry& entry_;
  void* const grad_;
  const uint32_t formats_, present_;
};

/// The parameter: what it is in memory, and its exact numbers, from its master where it has one.
template <class Unit>
class Value {
 public:
  static constexpr int kPerLane = Unit::kPerLane;
  using Own = Lane<kPerLane>;

  __device__ explicit Value(const AdamwEntry& entry)
      : split_(entry.split), stochastic_(entry.stochastic), key_(entry.key) {}

  __device__ void load(const Operands<Unit>& o) {
    if (o.has(kMaster) && !split_)
      o.template load<4>(kMaster, number_);
    else
      o.load(kParam, number_);
    if (split_) o.template load<2>(kMaster, low_);
  }
  /// Once all is there.
  __device__ Own& numbers(Operands<Unit>& o) {
    if (split_) {
      o.unit().template unpack<2>(number_);
      o.unit().template unpack<2>(low_);
      CUX_UNROLL
      for (int i = 0; i < kPerLane; ++i) {
        const auto low = static_cast<uint32_t>(static_cast<int16_t>(low_.word[i]));
        number_.word[i] = same_bits<uint32_t>(split_value<float>(number_.word[i], low));
      }
    } else if (!o.has(kMaster)) {
      o.widen(kParam, number_);
    }
    return number_;
  }

  /// The piece that the unit is at.
  __device__ void write(Operands<Unit>& o, const RoundingSeed& seed) const {
    if (split_) return write_split(o);
    if (stochastic_)
      write_stochastic(o, seed);
    else
      o.write(kParam, number_);
    if (o.has(kMaster)) o.template store<4>(kMaster, number_);
  }

 private:
  __device__ void write_split(Operands<Unit>& o) const {
    Own high, low;
    o.for_piece([&](int i) {
      const SplitBits<float> bits = split_bits(number(number_, i));
      high.word[i] = bits.high;
      low.word[i] = bits.low & 0xffffu;
    });
    o.template write_bits<2>(kParam, high);
    o.template write_bits<2>(kMaster, low);
  }

  __device__ void write_stochastic(Operands<Unit>& o, const RoundingSeed& seed) const {
    Own rounded;
    const auto round = [&](int i, uint32_t word) {
      const float x = number(number_, i);
      rounded.word[i] = o.dtype(kParam) == Dtype::kBFloat16
                            ? stochastic_bfloat16(x, word)
                            : stochastic_float16<cux::ExactMath>(x, word);
    };
    if constexpr (Unit::kWide) {
      CUX_UNROLL
      for (int i = 0; i < kPerLane; i += 4) {  // a quad has the words of one counter
        uint64_t words[4];
        rounding_words(seed, key_, static_cast<uint64_t>(o.unit().index(i)) / 4, words);
        CUX_UNROLL
        for (int j = 0; j < 4; ++j) round(i + j, static_cast<uint32_t>(words[j]));
      }
    } else {
      const int i = o.unit().first();
      round(i, rounding_word(seed, key_, o.unit().index(i)));
    }
    o.template write_bits<2>(kParam, rounded);
  }

  const bool split_, stochastic_;
  const uint32_t key_;
  Own number_, low_;
};

/// Whether the unit is a wide one.
__device__ inline bool is_wide(const AdamwTable& table, int64_t t, int64_t begin) {
  const AdamwEntry& entry = table.entries[t];
  if (entry.walk.dims != 0 || entry.walk.numel - begin < kBlock) return false;
  uintptr_t all = reinterpret_cast<uintptr_t>(table.grads[t]);
  CUX_UNROLL
  for (int k = 0; k < kIndex; ++k) all |= reinterpret_cast<uintptr_t>(entry.data[k]);
  return all % 16 == 0;
}

__device__ inline RoundingSeed seed_of(const AdamwUpdateProblem& p) {
  return p.seed ? rounding_seed(p.seed[0], p.seed[p.seed_stride]) : RoundingSeed{};
}

}  // namespace fulgurite::cuda
