// What the last launch moved of tensors' elements.
#pragma once

#include <algorithm>

#include "cuda/host/counts.h"

namespace fulgurite {

/// By lines of units.cuh; of all lines the fewest bytes a lane.
inline cux::host::LineCounts traffic(bool write) {
  cux::host::LineCounts sum;
  sum.bytes_a_lane = 16;
  for (const auto& [line, of] : cux::host::counts().lines) {
    if (line.write != write || cux::host::to_string(line.site).rfind("units.cuh", 0) != 0) continue;
    sum.bytes_a_lane = std::min(sum.bytes_a_lane, of.bytes_a_lane);
    sum.bytes += of.bytes;
    sum.moves += of.moves;
    sum.ideal_moves += of.ideal_moves;
  }
  return sum;
}

}  // namespace fulgurite
