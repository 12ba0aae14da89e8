// Launches of loss scaling's kernels.
#include "amp/cuda/kernels/gradients.cuh"
#include "amp/cuda/kernels/scale.cuh"
#include "cuda/launch.h"

namespace fulgurite::cuda {
namespace {

dim3 blocks_for(int64_t n, int64_t per_block) {
  return dim3(static_cast<unsigned>((n + per_block - 1) / per_block));
}

}  // namespace

cux::Error run_grad_stats(const GradStatsProblem& p, cux::Stream stream) {
  const dim3 slots = blocks_for(p.slots, kTreesPerBlock),
             gradients = blocks_for(p.count, kTreesPerBlock);
  if (p.slots > 0)
    if (const cux::Error error = cux::launch(slot_stats, slots, dim3(kThreads), 0, stream, p))
      return error;
  if (p.count > 0)
    if (const cux::Error error =
            cux::launch(gradient_stats, gradients, dim3(kThreads), 0, stream, p))
      return error;
  return cux::launch(list_stats, dim3(1), dim3(32), 0, stream, p);
}

cux::Error run_unscale(const UnscaleProblem& p, cux::Stream stream) {
  if (p.positions == 0) return nullptr;
  return cux::launch(unscale, blocks_for(p.positions, kPositionsPerBlock), dim3(kUnscaleThreads), 0,
                     stream, p);
}

cux::Error run_clip_multiplier(const ClipMultiplierProblem& p, cux::Stream stream) {
  return cux::launch(clip_multiplier, dim3(1), dim3(1), 0, stream, p);
}

cux::Error run_update_scale(const UpdateScaleProblem& p, cux::Stream stream) {
  return cux::launch(update_scale_state, dim3(1), dim3(1), 0, stream, p);
}

}  // namespace fulgurite::cuda
