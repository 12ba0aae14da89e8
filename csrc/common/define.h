// Every operator is defined here: its schema, its tag, and its answer to tensors that no kernel reads.
#pragma once

#include <torch/library.h>

namespace fulgurite {

/// Defines the operator. Of nested, sparse, mkldnn and quantized tensors, wherever they stand among its arguments, it says
/// which one was expected to be dense: the dispatcher finds these kernels before any of ours, and no other call comes by.
void define(torch::Library& m, const std::string& schema);

}  // namespace fulgurite
