// The calls of the family as every device sees them: plain pointers, sizes and strides.
//
// Legend: B batch, C channels (D of a scan), L positions, W width of a convolution, N states, G groups.
#pragma once

#include <cstdint>

#include "linear/rules/choices.h"
#include "simd/types.h"

namespace fulgurite {

/// A backward goes on from states that the forward kept before every so many positions of a sequence.
inline constexpr int64_t kKeptEvery = 32;

/// A sequence: a batch entry, or a run of positions of a pack.
struct Span {
  int64_t batch, start, length;
  int64_t block;  // blocks of kKeptEvery positions in the sequences before it
};

/// Positions [begin, end) of a sequence, counted from its start.
struct Piece {
  int64_t sequence, begin, end;
};

/// All positions of all sequences, as pieces in order; group g has the pieces from groups[g] to groups[g + 1].
struct Pieces {
  const Span* sequences;
  const Piece* pieces;
  const int64_t* groups;
  int64_t group_count;
};

/// (B,C,L) of any strides, in elements.
struct Signal {
  const void* data;
  int64_t batch, channel, position;
};

/// A signal in the call's dtype or in float32.
struct Input : Signal {
  bool float32;
};

struct CausalConv1dProblem {
  Dtype dtype;  // of x, out, states and their gradients
  ConvActivation activation;
  int64_t C, L, W;
  Signal x;              // (B,C,L)
  Input weight;          // (1,C,W)
  Input bias;            // (1,C,1); null: none
  Signal initial_state;  // (sequences,C,W-1); null: zeros
  Pieces parts;
};

/// (B,G,N,L)
struct GroupedInput : Input {
  int64_t group;
};

struct SelectiveScanProblem {
  Dtype dtype;  // of u, z and out
  bool softplus;
  int64_t D, L, N, G;
  Input u, delta, z;       // (B,D,L); z.data null: no gate
  Input A;                 // (1,D,N)
  GroupedInput B, C;       // (B,G,N,L)
  Input skip, delta_bias;  // (1,D,1); null: zeros
  Signal initial_state;    // (sequences,D,N), accumulation type; null: zeros
  Pieces parts;            // its sequences
};

}  // namespace fulgurite
