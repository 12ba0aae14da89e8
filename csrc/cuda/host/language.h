// CUDA's keywords, variables and functions that kernels use, for g++.
#pragma once

#include <type_traits>

#include "cuda/host/executor.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::cux::host::current_thread->thread)
#define blockIdx (::cux::host::current_thread->block)
#define blockDim (::cux::host::current_thread->block_size)
#define gridDim (::cux::host::current_thread->grid_size)

namespace cux::host {

template <class T>
struct Shuffle {
  T in;
  int from;
  T out;
};
template <class T>
void shuffle_lanes(Lanes& lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes.mask >> lane & 1)) continue;
    auto& own = *static_cast<Shuffle<T>*>(lanes.payload[lane]);
    if (!(lanes.mask >> own.from & 1)) read_of_absent_lane(lane, own.from, lanes.mask);
    own.out = static_cast<Shuffle<T>*>(lanes.payload[own.from])->in;
  }
}
template <class T>
T shuffle(uint32_t mask, T value, int from, Location at) {
  Shuffle<T> payload{value, from, value};
  collective(mask, Operation::kShuffle, &payload, shuffle_lanes<T>, at);
  return payload.out;
}

struct Vote {
  bool yes;
  uint32_t all;
};
inline void count_votes(Lanes& lanes) {
  uint32_t all = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes.mask >> lane & 1 && static_cast<Vote*>(lanes.payload[lane])->yes) all |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes.mask >> lane & 1) static_cast<Vote*>(lanes.payload[lane])->all = all;
}

struct Match {
  uint64_t key;
  uint32_t same;
};
inline void match_lanes(Lanes& lanes) {
  const auto of = [&](int lane) { return static_cast<Match*>(lanes.payload[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes.mask >> lane & 1)) continue;
    of(lane)->same = 0;
    for (int other = 0; other < 32; ++other)
      if (lanes.mask >> other & 1 && of(other)->key == of(lane)->key) of(lane)->same |= 1u << other;
  }
}

/// The lane that a shuffle within groups of `width` lanes reads, or the lane itself at a group's end.
inline int lane_within(int lane, int from, int width) {
  const int first = lane & ~(width - 1);
  return from < first || from >= first + width ? lane : from;
}

}  // namespace cux::host

inline void __syncthreads(cux::host::Location at = cux::host::Location::current()) {
  cux::host::barrier(at);
}
inline void __syncwarp(uint32_t mask = ~0u,
                       cux::host::Location at = cux::host::Location::current()) {
  cux::host::collective(
      mask, cux::host::Operation::kSyncwarp, nullptr, [](cux::host::Lanes&) {}, at);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32,
              cux::host::Location at = cux::host::Location::current()) {
  const int lane = cux::host::current_thread->lane;
  return cux::host::shuffle(mask, value, (lane & ~(width - 1)) | (from & (width - 1)), at);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int by, int width = 32,
                  cux::host::Location at = cux::host::Location::current()) {
  const int lane = cux::host::current_thread->lane;
  return cux::host::shuffle(mask, value, cux::host::lane_within(lane, lane ^ by, width), at);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int by, int width = 32,
                   cux::host::Location at = cux::host::Location::current()) {
  const int lane = cux::host::current_thread->lane;
  return cux::host::shuffle(mask, value, cux::host::lane_within(lane, lane + by, width), at);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int by, int width = 32,
                 cux::host::Location at = cux::host::Location::current()) {
  const int lane = cux::host::current_thread->lane;
  return cux::host::shuffle(mask, value, cux::host::lane_within(lane, lane - by, width), at);
}
inline uint32_t __ballot_sync(uint32_t mask, int yes,
                              cux::host::Location at = cux::host::Location::current()) {
  cux::host::Vote vote{yes != 0, 0};
  cux::host::collective(mask, cux::host::Operation::kVote, &vote, cux::host::count_votes, at);
  return vote.all;
}
inline int __any_sync(uint32_t mask, int yes,
                      cux::host::Location at = cux::host::Location::current()) {
  return __ballot_sync(mask, yes, at) != 0;
}
inline int __all_sync(uint32_t mask, int yes,
                      cux::host::Location at = cux::host::Location::current()) {
  return __ballot_sync(mask, !yes, at) == 0;
}
template <class T>
uint32_t __match_any_sync(uint32_t mask, T key,
                          cux::host::Location at = cux::host::Location::current()) {
  cux::host::Match match{static_cast<uint64_t>(key), 0};
  cux::host::collective(mask, cux::host::Operation::kMatch, &match, cux::host::match_lanes, at);
  return match.same;
}

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> x,
            cux::host::Location at = cux::host::Location::current()) {
  return cux::host::read_modify_write(p, [x](T old) { return old + x; }, at);
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> x,
            cux::host::Location at = cux::host::Location::current()) {
  return cux::host::read_modify_write(p, [x](T old) { return old > x ? old : x; }, at);
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> x,
            cux::host::Location at = cux::host::Location::current()) {
  return cux::host::read_modify_write(p, [x](T old) { return old < x ? old : x; }, at);
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> x,
             cux::host::Location at = cux::host::Location::current()) {
  return cux::host::read_modify_write(p, [x](T) { return x; }, at);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x,
            cux::host::Location at = cux::host::Location::current()) {
  return cux::host::read_modify_write(p, [=](T old) { return old == expected ? x : old; }, at);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
