// Every operator is defined here: its schema, its tag, and its answer to tensors that no kernel reads or that are on a device
// without a kernel for it.
#pragma once

#include <torch/library.h>

namespace fulgurite {

/// What computes on CUDA tensors.
enum class OnCuda {
  kNothing,    // no kernel yet: a call says so
  kKernels,    // kernels of its family, where CUDA is built
  kComposite,  // operations of ATen, which run on every device
};

/// Defines the operator. Of nested, sparse, mkldnn and quantized tensors, wherever they stand among its arguments, it says
/// which one was expected to be dense: the dispatcher finds these kernels before any of ours, and no other call comes by.
void define(torch::Library& m, const std::string& schema, OnCuda on_cuda = OnCuda::kNothing);

}  // namespace fulgurite
