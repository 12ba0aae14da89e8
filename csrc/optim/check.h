// Validation of the optim family, shared by the Meta and CPU kernels.
#pragma once

#include "optim/args.h"

namespace fulgurite {

/// Types, shapes, values and support, in this order over all tensors, before anything is written.
void check_adamw(const AdamwArgs& args);
void check_adamw_8bit(const Adamw8bitArgs& args);
/// What only memory can tell: strides that overlap, a tensor that is listed twice.
void check_adamw_memory(const AdamwArgs& args);
void check_adamw_8bit_memory(const Adamw8bitArgs& args);
/// That, and the contents of hyper and steps, which the CPU can read.
void check_adamw_contents(const AdamwArgs& args);
void check_adamw_8bit_contents(const Adamw8bitArgs& args);

/// What is there once, where every tensor of the lists has passed.
void check_adamw_single(const AdamwArgs& args);
/// The contents of hyper.
void check_adamw_hyper(const AdamwArgs& args);

void check_split_master(const SplitMasterArgs& args);
void check_join_master(const JoinMasterArgs& args);

}  // namespace fulgurite
