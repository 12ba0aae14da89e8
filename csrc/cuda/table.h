// Tables of a call, from the host to the card without a copy that anybody waits for: they are the arguments of launches, which CUDA
// keeps until it runs them, in a captured graph too.
#pragma once

#include <vector>

#include "cuda/stream.h"

namespace fulgurite::cuda {

/// Writes the bytes of a table to `to`, where `kept` was written before, or nothing: pieces that differ. Both have multiples of
/// 16 bytes, and so does the address.
cux::Error run_write_table(const std::vector<unsigned char>& kept,
                           const std::vector<unsigned char>& now, unsigned char* to,
                           cux::Stream stream);

/// Whether what is launched becomes part of a graph, to run whenever that is replayed.
bool is_captured(cux::Stream stream);

}  // namespace fulgurite::cuda
