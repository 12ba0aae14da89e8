// What a launcher of kernels takes and gives back, for callers that see nothing else of CUDA.
#pragma once

namespace cux {

/// A cudaStream_t.
using Stream = void*;

/// What went wrong, or null.
using Error = const char*;

}  // namespace cux
