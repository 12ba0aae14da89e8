// Attention forward on a card, for who has a problem and a stream.
#pragma once

#include "attention/cuda/params.h"
#include "cuda/launch.h"

namespace fulgurite::cuda {

inline constexpr int64_t kMostWidth = 256;  // of queries, keys and values

/// What the kernels have no place for: the limit in words, or null.
inline const char* forward_limit(const AttentionCudaParams& p) {
  constexpr int64_t kMostRows = int64_t{1} << 30, kMostBlocks = int64_t{1} << 31;
  if (p.D > kMostWidth || p.Dv > kMostWidth) return "head widths up to 256";
  if (p.N > kMostRows || p.M > kMostRows) return "up to 2^30 queries and keys";
  if ((p.N / 32 + 1) * p.B * p.Hq >= kMostBlocks) return "less than 2^31 blocks of queries";
  return nullptr;
}

/// p.out and p.lse from the rest of p; N, B and Hq are not 0, and forward_limit() is null. `wide` is set here.
cux::Error attention_forward(AttentionCudaParams p, cux::Stream stream);

// Of one type, compiled by instances/: widths up to 96, and above.
template <class T, bool kPlain>
cux::Error launch_narrow_forward(const AttentionCudaParams& p, cux::Stream stream);
template <class T, bool kPlain>
cux::Error launch_wide_forward(const AttentionCudaParams& p, cux::Stream stream);
cux::Error launch_float32_forward(const AttentionCudaParams& p, cux::Stream stream);

}  // namespace fulgurite::cuda
