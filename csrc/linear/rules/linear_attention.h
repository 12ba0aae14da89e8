// Linear attention as every device sees it, and the grid of positions that it is computed on.
//
// Legend: B batch, H heads, Hk heads of query and key, N queries, M keys, D width of query and key, Dv of value.
#pragma once

#include <cstdint>

#include "common/ceil_div.h"
#include "common/host_device.h"
#include "simd/types.h"

namespace fulgurite {

enum class DecayKind : int { kNone, kPosition, kFeature };

/// A backward goes on from states that the forward kept before every so many positions, where chunks allow it.
inline constexpr int64_t kLinearBlock = 256;
/// Positions computed at once: with a decay per feature each pair of them has D factors of its own.
inline constexpr int64_t kLinearChunk = 32, kFeatureChunk = 16;

/// Chunks are computed at once; a block is as many of them as lie between two kept states. Both are counted from a sequence's
/// start, and 256 is a multiple of either but where exclusive chunks shift them: a call cut there has the chunks of the whole.
struct ChunkGrid {
  int64_t chunk;  // positions at most
  int64_t block;  // positions from a kept state to the next, at most
  int64_t
      held;  // 0, or positions that read one state: exclusive chunks too long to be computed at once
  int64_t inner;  // 0, or the exclusive chunks within `chunk`, which is a multiple of them

  FULGURITE_HOST_DEVICE int64_t block_end(int64_t begin, int64_t length) const {
    int64_t end = begin + block;
    if (held > kLinearBlock && (begin / held + 1) * held < end) end = (begin / held + 1) * held;
    return end < length ? end : length;
  }
  FULGURITE_HOST_DEVICE int64_t chunk_end(int64_t begin, int64_t length) const {
    int64_t end = block_end(begin - begin_in_block(begin), length);
    if (held > 0 && (begin / held + 1) * held < end) end = (begin / held + 1) * held;
    return begin + chunk < end ? begin + chunk : end;
  }
  /// Blocks of the first `length` positions.
  FULGURITE_HOST_DEVICE int64_t blocks(int64_t length) const {
    if (held <= kLinearBlock) return ceil_div(length, block);
    return length / held * ceil_div(held, block) + ceil_div(length % held, block);
  }
  FULGURITE_HOST_DEVICE int64_t block_begin(int64_t index) const {
    if (held <= kLinearBlock) return index * block;
    const int64_t of_held = ceil_div(held, block);
    return index / of_held * held + index % of_held * block;
  }
  FULGURITE_HOST_DEVICE bool starts_block(int64_t begin) const {
    return begin_in_block(begin) == 0;
  }
  /// Of any number of positions, together with one for each sequence, an upper bound of their blocks.
  FULGURITE_HOST_DEVICE int64_t least_block() const {
    return held > kLinearBlock ? kLinearBlock : block;
  }
  FULGURITE_HOST_DEVICE int64_t chunks_of_block() const {
    if (held == 0 || held > kLinearBlock) return ceil_div(block, chunk);
    return block / held * ceil_div(held, chunk);
  }

 private:
  FULGURITE_HOST_DEVICE int64_t begin_in_block(int64_t begin) const {
    return held > kLinearBlock ? begin % held % block : begin % block;
  }
};

FULGURITE_HOST_DEVICE ChunkGrid chunk_grid(bool per_feature, int64_t exclusive_chunk) {
  const int64_t most = per_feature ? kFeatureChunk : kLinearChunk, c = exclusive_chunk;
  if (c == 0) return {most, kLinearBlock, 0, 0};
  if (c < most) {
    int64_t chunk = c;
    while (2 * chunk <= most) chunk *= 2;
    return {chunk, kLinearBlock / chunk * chunk, 0, c};
  }
  if (c <= kLinearBlock) return {most, kLinearBlock / c * c, c, 0};
  return {most, ceil_div(c, c / kLinearBlock), c, 0};
}

/// A sequence: a batch entry, or a run of positions of a pack. Its first block is one of those of all sequences.
struct LinearSpan {
  int64_t batch, start, queries, keys, block;
};

/// (B,H,N,D) of any strides, in elements.
struct Heads {
  const void* data;
  int64_t batch, head, position, feature;
};

/// In the call's dtype or in float32.
struct HeadsInput : Heads {
  bool float32;
};

struct LinearAttentionProblem {
  Dtype dtype;
  int64_t B, H, Hk, N, M, D, Dv;
  double scale, eps;
  bool causal, normalize;
  DecayKind decay;
  ChunkGrid grid;
  Heads query, key;      // (B,Hk,N,D), (B,Hk,M,D)
  Heads value;           // (B,H,M,Dv)
  HeadsInput log_decay;  // (B,H,N,D), broadcast by strides of 0
  HeadsInput bonus;      // (1,H,1,D); null: none
  Heads initial_state;   // (sequences,H,D,Dv), accumulation type; null: zeros
  Heads initial_norm;    // (sequences,H,D,1), accumulation type; null: zeros
  const LinearSpan* spans;
  int64_t sequences;

  /// Columns of a state: normalising adds one, of values that are all 1.
  FULGURITE_HOST_DEVICE int64_t columns() const { return Dv + (normalize ? 1 : 0); }
  FULGURITE_HOST_DEVICE int64_t group() const { return H / Hk; }
};

}  // namespace fulgurite
