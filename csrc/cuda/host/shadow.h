// What the checker remembers of a byte: its last write, and its last reads.
//
// Accesses are ordered by barriers alone. A thread's access carries how many barriers its warp had passed and how many
// __syncwarp its lane; clocks say how much of that other threads have been shown (machine.h). Blocks of a launch are never
// ordered.
#pragma once

#include <cstdint>

#include "cuda/host/report.h"

namespace cux::host {

struct Access {
  Site site = 0;
  uint32_t block = 0;     // number of the block over all launches; 0: there was none
  uint32_t barriers = 0;  // that its warp had passed
  uint32_t syncs = 0;     // __syncwarp that its lane had passed
  uint16_t thread = 0;
  bool atomic = false;
};

struct Cell {
  Access write;
  Access reads[2];            // the last one, and the last one of another warp
  bool copy_pending = false;  // a cp.async to here has not been waited for
};

enum class Touch { kRead, kWrite, kAtomic };

struct Fiber;

/// An access by `fiber`, wherever it goes. Ends the launch if it must not be carried out. False if no other thread can see it.
bool check_access(Fiber& fiber, const void* address, size_t bytes, Touch touch, Site site);
/// A cp.async: its destination may not be touched until it is waited for.
void begin_copy(Fiber& fiber, void* to_shared, Site site);
void end_copy(Fiber& fiber, void* to_shared, Site site);

}  // namespace cux::host
