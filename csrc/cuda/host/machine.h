// The multiprocessor that the executor plays: one block at a time, its threads as fibers, the order in which they run, and what
// each has been shown of the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "cuda/host/counts.h"
#include "cuda/host/executor.h"
#include "cuda/host/fiber.h"
#include "cuda/host/settings.h"
#include "cuda/host/shadow.h"

namespace cux::host {

inline constexpr int kWarp = 32, kMostThreads = 1024, kMostWarps = kMostThreads / kWarp;
inline constexpr int kNamedBarriers = 16;
inline constexpr int kCopyBytes = 16;

struct Copy {
  unsigned char* to;
  const unsigned char* from;  // null: zeros
  Site site;
};

enum class State : uint8_t { kReady, kAtBarrier, kAtNamedBarrier, kInCollective, kDone };

struct Fiber {
  ThreadContext thread;
  Strand strand;
  State state = State::kDone;
  Site waits_at = 0;
  std::vector<Copy> uncommitted;
  std::vector<std::vector<Copy>> groups;
  uint32_t syncs = 0;  // __syncwarp passed
  uint32_t shown[kWarp] =
      {};  // of each lane of its warp: accesses before this many of its __syncwarp
};

/// A warp operation for which not all lanes have come.
struct Pending {
  uint32_t mask, arrived;
  Operation operation;
  Site site;
  Combine combine;
  void* payload[kWarp];
};

struct Warp {
  uint32_t exited = 0;
  uint32_t barriers = 0;            // passed
  uint32_t shown[kMostWarps] = {};  // of each warp: accesses before this many of its barriers
  std::vector<Pending> pending;
  WarpTraffic traffic;
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  uint32_t warps = 0, waiting_warps = 0;
  std::vector<int> waiting;
};

/// A static array in shared memory.
struct StaticArray {
  const void* key;
  const char* name;
  size_t offset, bytes;
};

struct SharedMemory {
  // Dynamic memory in front, then static arrays with gaps around them, all within gaps that belong to nobody.
  static constexpr size_t kGap = 1 << 10, kMost = 320 << 10;
  unsigned char* base = nullptr;
  size_t dynamic_bytes = 0, static_bytes = 0, end = 0;
  std::vector<StaticArray> arrays;
  std::vector<Cell> cells;

  bool contains(uintptr_t address) const;
  /// Whether an access lies in one array, or in dynamic memory, whole.
  bool is_within(size_t offset, size_t bytes) const;
  /// "values+12": the array that an offset is nearest to, and the byte of it.
  std::string name_of(size_t offset) const;
  Cell* cell(size_t offset) { return &cells[offset]; }
};

struct Machine {
  std::vector<Fiber> fibers;
  Warp warps[kMostWarps];
  NamedBarrier named[kNamedBarriers];
  SharedMemory shared;
  Strand launching;
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
  Schedule schedule;

  std::vector<int> ready;  // fibers, in the order in which they became so
  char* stacks = nullptr;
  size_t stack_bytes = 0;
  int threads = 0, done = 0, at_barrier = 0;
  Site barrier_site = 0;
  uint32_t block = 0, first_block = 1;  // numbers over all launches
  uint64_t random = 1;
  unsigned accesses = 0;    // since a thread last gave way
  bool ended = false;       // by fail()
  Site combining = 0;       // of the warp operation that is carried out for all its lanes
  bool in_executor = true;  // its accesses are nobody's

  int warps_in_block() const { return (threads + kWarp - 1) / kWarp; }
  uint64_t next_random();
};
Machine& machine();

/// The executor is at work: what it calls of the standard library may be the copy that was compiled with a kernel.
class AtWork {
 public:
  AtWork() : before_(machine().in_executor) { machine().in_executor = true; }
  ~AtWork() { machine().in_executor = before_; }
  AtWork(const AtWork&) = delete;
  AtWork& operator=(const AtWork&) = delete;

 private:
  bool before_;
};

/// The launch ends with the running thread, which is never resumed.
[[noreturn]] void end_launch();

void make_ready(int fiber);
/// The running thread waits, until somebody makes it ready.
void wait(State state, Site site);
/// Others run before the running thread goes on.
void give_way();
/// Of all waiting collectives of a warp and of the block's barriers: one may be complete now that a thread is gone.
void complete_collectives(Warp& warp, int number);
void complete_barrier();

/// Runs one block; false if the launch ended in it.
bool run_block(dim3 grid, dim3 block_size, dim3 block);
void prepare(int threads, size_t dynamic_bytes);

}  // namespace cux::host
