// The calls of the family as every device sees them: plain pointers, sizes and strides.
//
// Legend: T tokens, E experts, K experts per token, H width of a token, I hidden width of an
// expert.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "moe/rules/activations.h"
#include "moe/rules/choices.h"
#include "simd/types.h"

namespace fulgurite {

/// A matrix of any strides, in elements.
struct Matrix {
  const void* data;
  int64_t row_stride, column_stride;
};

/// Which tokens count.
struct TokenMask {
  const bool* kept;  // (T); null: all
  int64_t stride;

  FULGURITE_HOST_DEVICE bool hides(int64_t t) const { return kept && !kept[t * stride]; }
};

// ---- routers

struct RouteProblem {
  Dtype dtype;  // of logits; everything else is in the accumulation type unless said otherwise
  int64_t T, E, K;
  Score score;
  bool renormalize;
  double eps, scale;
  Matrix logits;  // (T,E)
};

/// What expert choice computes for each token.
struct ExpertChoiceProblem {
  Dtype dtype;  // of logits and their gradient; everything else is in the accumulation type
  int64_t T, E;
  Matrix logits;  // (T,E)
};

struct LossProblem {
  Dtype dtype;  // of logits
  int64_t T, E;
  Score score;
  double eps;
  Matrix logits;  // (T,E)
  TokenMask token_mask;
  const void* coefficients;  // rows of E; balance losses: Σ_t Σ_e coefficient_e·P_te
  const int32_t* sequence;   // (T): the row of coefficients of each token; null: the first
};

struct UpdateBiasProblem {
  Dtype dtype;  // of bias
  int64_t E;
  void* bias;
  int64_t bias_stride;
  const int64_t* counts;  // contiguous
  double rate;
  BiasRule rule;
  bool center;
};

// ---- rows sorted by expert

struct CombineProblem {
  Dtype dtype;  // of x, y and their gradients
  int64_t T, K, H;
  const int32_t* inverse;  // (T,K) contiguous
  Matrix y;                // (T·K,H)
  const void* weights;     // (T,K) of the accumulation type, contiguous, or null
};

/// One matrix for each expert, of any strides.
struct ExpertMatrices {
  const void* data;
  int64_t expert_stride, row_stride, column_stride;
};

/// One row for each expert, of any strides; data is null where there is none.
struct ExpertRows {
  const void* data;
  int64_t expert_stride, column_stride;
};

/// A row for each sorted position: its token's, where a permutation (T·K) says which that is, or one that stands at the
/// position; in the storage type, or as operands, which are contiguous and padded with zeros to whole steps.
struct SortedRows {
  Matrix matrix;
  const int32_t* permutation;
  int64_t K;
  bool operands;
};

/// Sorted positions [first, first + rows) of one expert.
struct Segment {
  int64_t expert, first, rows;
};

/// The experts; positions are sorted by expert. The hidden layer's width is I, or 2I where it is gated: gates then ups, or each
/// gate beside its up.
struct ExpertsProblem {
  Dtype dtype;
  int64_t H, I;
  ActivationRule activation;
  bool gated, interleaved;
  const Segment* segments;
  const int32_t* permutation;  // (T·K)
  ExpertMatrices w_in, w_out;  // (E,width,H), (E,H,I)
  ExpertRows b_in, b_out;      // (E,width), (E,H), or none

  FULGURITE_HOST_DEVICE int64_t width() const { return gated ? 2 * I : I; }
};

}  // namespace fulgurite
