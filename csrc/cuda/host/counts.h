// What a launch did, counted: bytes and sectors of global memory and wavefronts of shared memory by source line, products of
// the tensor cores, barriers. CUX_COUNTS names the file to which each launch adds a line of JSON.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "cuda/host/report.h"
#include "cuda/host/types.h"

namespace cux::host {

struct Fiber;
struct Warp;

/// What is counted together: a line may read one memory and write another.
struct Line {
  Site site;
  bool shared, write;
  auto operator<=>(const Line&) const = default;
};

/// One lane's part of a warp's access.
struct LaneAccess {
  Line line;
  uintptr_t address;  // in shared memory: from its start
  uint8_t bytes;
  uint8_t lane = 0;
};

/// Accesses since the warp's last barrier or warp operation; the n-th of each lane at a line are one request.
struct WarpTraffic {
  std::vector<LaneAccess> accesses;
};

struct LineCounts {
  unsigned bytes_a_lane = 0;
  uint64_t requests = 0, bytes = 0;
  uint64_t moves = 0, ideal_moves = 0;  // sectors of 32 bytes; in shared memory wavefronts
};

struct Counts {
  uint64_t blocks = 0, barriers = 0, warp_operations = 0, copies = 0;
  uint64_t ldmatrix = 0, mma = 0, mma_while_copying = 0;
  std::map<Line, LineCounts> lines;

  /// Wavefronts of shared memory, those of ldmatrix among them.
  uint64_t wavefronts() const;
};
/// Of the launch that runs, or of the last one.
Counts& counts();

/// Counting lines costs more than running most kernels: only where a file is named.
void note_traffic(Fiber& fiber, LaneAccess access);
void end_traffic(Warp& warp);
/// Eight rows of 16 bytes for each of the four matrices, by their place in shared memory.
void count_ldmatrix(Site site, const uintptr_t (&rows)[32]);
void write_counts(dim3 grid, dim3 block_size, size_t dynamic_bytes, size_t static_bytes);

}  // namespace cux::host
