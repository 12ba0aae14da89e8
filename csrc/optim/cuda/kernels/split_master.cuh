// Split masters on their own: float32 to halves and back (rules/split.h).
//
// Reads:         float32 masters; join the halves
// Writes:        high halves (the bfloat16 parameter) and low ones; join the masters
// Task:          a warp is 256 elements, which lie as in units.cuh
// Order of sums: none
#pragma once

#include "optim/cuda/kernels/units.cuh"
#include "optim/rules/split.h"

namespace fulgurite::cuda {

/// Elements of a unit in dense memory. Shifts: of float32 and of a half.
template <class Unit>
__device__ void split_unit(const SplitProblem& p, Unit unit) {
  CUX_UNROLL
  for (int piece = 0; piece < Unit::kPieces; ++piece) {
    unit.go_to(piece);
    Lane<Unit::kPerLane> master, low;
    unit.template load<4>(kParam, unit.base(p.master, 2), master);
    CUX_UNROLL
    for (int i = unit.first(); i < unit.first() + Unit::kPiece; ++i) {
      const SplitBits<float> bits = split_bits(same_bits<float>(master.word[i]));
      master.word[i] = bits.high;
      low.word[i] = bits.low & 0xffffu;
    }
    unit.template pack<2>(master);
    unit.template pack<2>(low);
    unit.template store<2>(kParam, unit.base(p.high, 1), master);
    unit.template store<2>(kParam, unit.base(p.low, 1), low);
  }
}

template <class Unit>
__device__ void join_unit(const SplitProblem& p, Unit unit) {
  CUX_UNROLL
  for (int piece = 0; piece < Unit::kPieces; ++piece) {
    unit.go_to(piece);
    Lane<Unit::kPerLane> high, low;
    unit.template load<2>(kParam, unit.base(p.high, 1), high);
    unit.template load<2>(kParam, unit.base(p.low, 1), low);
    unit.template unpack<2>(high);
    unit.template unpack<2>(low);
    CUX_UNROLL
    for (int i = unit.first(); i < unit.first() + Unit::kPiece; ++i) {
      const auto extended = static_cast<uint32_t>(static_cast<int16_t>(low.word[i]));
      high.word[i] = same_bits<uint32_t>(joined_bits<float>(high.word[i], extended));
    }
    unit.template store<4>(kParam, unit.base(p.master, 2), high);
  }
}

/// visit(unit) for the warp's elements of n.
template <class Visit>
__device__ void for_dense_units(const SplitMasterProblem& p, const Visit& visit) {
  const int64_t begin =
      (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * Wide::kElements;
  const uintptr_t all = reinterpret_cast<uintptr_t>(p.halves.master) |
                        reinterpret_cast<uintptr_t>(p.halves.high) |
                        reinterpret_cast<uintptr_t>(p.halves.low);
  const int lane = lane_of_thread();
  if (begin + Wide::kElements <= p.n && all % 16 == 0) return visit(Wide(begin, lane));
  visit(Narrow<8>(begin, p.n, lane));
}

static __global__ void __launch_bounds__(kThreads) split_master(SplitMasterProblem p) {
  for_dense_units(p, [&](auto unit) { split_unit(p.halves, unit); });
}
static __global__ void __launch_bounds__(kThreads) join_master(SplitMasterProblem p) {
  for_dense_units(p, [&](auto unit) { join_unit(p.halves, unit); });
}

inline cux::Error launch_split(void (*kernel)(SplitMasterProblem), const SplitMasterProblem& p,
                               cux::Stream stream) {
  if (p.n == 0) return nullptr;
  constexpr int64_t kElements = int64_t{kWarps} * Wide::kElements;
  return cux::launch(kernel, dim3(static_cast<unsigned>((p.n + kElements - 1) / kElements)),
                     dim3(kThreads), 0, stream, p);
}

}  // namespace fulgurite::cuda
