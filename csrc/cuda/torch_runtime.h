// What calls ask of torch for a device. The tests' libraries, whose kernels run on the host, have another file in place of
// torch_runtime.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/stream.h"

namespace fulgurite::cuda {

/// A call begins on a device: the stream that torch uses there now.
cux::Stream begin_call(c10::Device device);
/// The call took memory that nobody reads before its kernels have written it.
void begin_memory(const at::Tensor& memory);
void end_call();

}  // namespace fulgurite::cuda
