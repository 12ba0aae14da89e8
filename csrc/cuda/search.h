// Searches by the 32 lanes of a warp.
#pragma once

#include "cuda/cux.h"

namespace cux {

/// The last i < n for which begins(i) holds; it does for 0, and for nothing after one for which it does not. A 32nd part at a
/// time.
template <class Begins>
__device__ int64_t last_that_begins(int64_t n, int lane, const Begins& begins) {
  int64_t first = 0;
  while (n > 1) {
    const int64_t part = (n + 31) / 32, at = lane * part;
    const bool own = at < n && begins(first + at);
    const int parts = __popc(__ballot_sync(~0u, own));
    first += (parts - 1) * part;
    n = n - (parts - 1) * part < part ? n - (parts - 1) * part : part;
  }
  return first;
}

}  // namespace cux
