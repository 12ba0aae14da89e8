// Loss scaling as its kernels of CUDA see it. Pointers lead to memory of the card.
#pragma once

#include <cstdint>

#include "amp/rules/problem.h"
#include "amp/rules/scale.h"
#include "cuda/stream.h"

namespace fulgurite::cuda {

/// Gradients, none of float64, and what each is multiplied with.
struct Gradients {
  const Walk* walks;
  const int64_t* layouts;
  const GradTensor* grads;
  int64_t count;
  const float* inv_scale;  // null: 1
};

/// Walks in logical order.
struct GradStatsProblem : Gradients {
  const int64_t* first;  // slot of each gradient's first block; one more for the end (amp/plan.h)
  int64_t slots;
  // Workspace: of each slot, then of each gradient.
  double *slot_sums, *grad_sums;
  bool *slot_bad, *grad_bad;
  float* found_inf;
  double* norm_sq;
  int64_t* first_bad;
};
/// Slots, then gradients, then the list: three launches.
cux::Error run_grad_stats(const GradStatsProblem& p, cux::Stream stream);

/// Of unscale_: four loads of 16 bytes by each thread where elements have 16 bits, eight where they have 32.
inline constexpr int64_t kPositionsPerBlock = 8192;

/// Walks in memory's order.
struct UnscaleProblem : Gradients {
  int64_t positions;
  float* found_inf;
};
cux::Error run_unscale(const UnscaleProblem& p, cux::Stream stream);

struct ClipMultiplierProblem {
  const double* norm_sq;
  const float* inv_scale;  // null: 1
  double max_norm, eps;
  float* factor;
};
cux::Error run_clip_multiplier(const ClipMultiplierProblem& p, cux::Stream stream);

struct UpdateScaleProblem {
  ScaleRule rule;
  float* scale;
  int32_t *tracker, *hysteresis;
  int64_t* counters;
  int64_t counters_stride;
  const float* found_inf;
};
cux::Error run_update_scale(const UpdateScaleProblem& p, cux::Stream stream);

}  // namespace fulgurite::cuda
