// Validation of the amp family, shared by the Meta and CPU kernels.
#pragma once

#include "amp/args.h"

namespace fulgurite {

void check_grad_stats(const GradStatsArgs& args);
void check_clip_multiplier(const ClipMultiplierArgs& args);
void check_unscale(const UnscaleArgs& args);
/// What only memory can tell: a gradient that overlaps itself cannot be written.
void check_unscale_memory(TensorList grads);
void check_update_scale(const UpdateScaleArgs& args);

}  // namespace fulgurite
