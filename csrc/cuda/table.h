// Tables of a call, from the host to the card without a copy that anybody waits for: they are the arguments of launches, which CUDA
// keeps until it runs them, in a captured graph too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/stream.h"

namespace fulgurite::cuda {

/// Writes bytes [0, bytes) of `table` to `to`, 16-byte aligned memory of the card, of a multiple of 16 bytes.
cux::Error write_table(void* to, const void* table, std::size_t bytes, cux::Stream stream);

}  // namespace fulgurite::cuda
