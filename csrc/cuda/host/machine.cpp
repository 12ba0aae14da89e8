#include "cuda/host/machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "cuda/host/report.h"

namespace cux::host {

__thread const ThreadContext* current_thread = nullptr;

namespace {

constexpr size_t kStack = 128 << 10;

/// Back to the launch, which looks what there is to do.
void leave(Machine& m, bool for_ever) {
  Fiber& fiber = *m.running;
  m.running = nullptr;
  current_thread = nullptr;
  switch_strand(fiber.strand, m.launching, for_ever);
}

void run_next(Machine& m) {
  const size_t pick =
      m.schedule.order == Order::kRandom ? m.next_random() % m.ready.size() : size_t{0};
  m.running = &m.fibers[static_cast<size_t>(m.ready[pick])];
  m.ready.erase(m.ready.begin() + static_cast<ptrdiff_t>(pick));
  current_thread = &m.running->thread;
  switch_strand(m.launching, m.running->strand, false);
}

void exit_thread(Machine& m) {
  Fiber& fiber = *m.running;
  fiber.state = State::kDone;
  ++m.done;
  if (!fiber.uncommitted.empty())
    report("copy-uncommitted", "the thread ends with a cp.async that it never committed, of %s",
           to_string(fiber.uncommitted[0].site).c_str());
  Warp& warp = m.warps[fiber.thread.warp];
  warp.exited |= 1u << fiber.thread.lane;
  complete_collectives(warp, fiber.thread.warp);
  complete_barrier();
}

void thread_entry() {
  Machine& m = machine();
  entered_from(m.launching);
  m.in_executor = false;
  (*m.body)();
  m.in_executor = true;
  exit_thread(m);
  leave(m, true);
  __builtin_unreachable();
}

/// A new block: fresh shared memory, fresh threads, nothing shown to anybody.
void reset(Machine& m, dim3 grid, dim3 size, dim3 block) {
  m.done = m.at_barrier = 0;
  m.running = nullptr;
  m.ready.clear();
  ++m.block;
  for (Warp& warp : m.warps) warp = {};
  for (NamedBarrier& named : m.named) named = {};
  std::fill(m.shared.base, m.shared.base + m.shared.end, 0xff);
  for (size_t i = 0; i < m.shared.end; ++i) m.shared.cells[i].copy_pending = false;
  int linear = 0;
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x, ++linear) {
        Fiber& fiber = m.fibers[static_cast<size_t>(linear)];
        fiber.thread = {dim3(x, y, z), block, size, grid, linear, linear % kWarp, linear / kWarp};
        fiber.uncommitted.clear();
        fiber.groups.clear();
        fiber.syncs = 0;
        std::fill(std::begin(fiber.shown), std::end(fiber.shown), 0u);
        begin_strand(fiber.strand, thread_entry);
      }
  for (int k = 0; k < m.threads; ++k)
    make_ready(m.schedule.order == Order::kDescending ? m.threads - 1 - k : k);
}

void report_deadlock(const Machine& m) {
  std::map<Site, int> places;
  for (int i = 0; i < m.threads; ++i) {
    const Fiber& fiber = m.fibers[static_cast<size_t>(i)];
    if (fiber.state != State::kDone) ++places[fiber.waits_at];
  }
  std::string text;
  for (const auto& [site, n] : places)
    text += (text.empty() ? "" : ", ") + std::to_string(n) + " at " + to_string(site);
  report("deadlock", "nobody can go on: threads wait, %s; %d have ended", text.c_str(), m.done);
}

}  // namespace

Machine& machine() {
  static Machine m;
  return m;
}

uint64_t Machine::next_random() {
  random ^= random << 13;
  random ^= random >> 7;
  random ^= random << 17;
  return random;
}

void make_ready(int fiber) {
  Machine& m = machine();
  m.fibers[static_cast<size_t>(fiber)].state = State::kReady;
  m.ready.push_back(fiber);
}

void wait(State state, Site site) {
  Machine& m = machine();
  m.running->state = state;
  m.running->waits_at = site;
  leave(m, false);
}

void give_way() {
  Machine& m = machine();
  if (m.ready.empty()) return;
  make_ready(m.running->thread.linear);
  leave(m, false);
}

void end_launch() {
  Machine& m = machine();
  if (!m.running)
    std::exit(1);  // not in a kernel: the host's own call was wrong, and nothing can be ended
  m.ended = true;
  leave(m, true);
  __builtin_unreachable();
}

bool run_block(dim3 grid, dim3 size, dim3 block) {
  Machine& m = machine();
  reset(m, grid, size, block);
  while (m.done < m.threads && !m.ended) {
    if (m.ready.empty()) {
      report_deadlock(m);
      m.ended = true;
      break;
    }
    run_next(m);
  }
  for (Warp& warp : m.warps) end_traffic(warp);
  ++counts().blocks;
  return !m.ended;
}

void prepare(int threads, size_t dynamic_bytes) {
  Machine& m = machine();
  m.threads = threads;
  m.ended = false;
  if (m.fibers.size() < static_cast<size_t>(threads)) {
    if (m.stacks) munmap(m.stacks, m.stack_bytes * m.fibers.size());
    m.fibers.resize(static_cast<size_t>(threads));
    m.stack_bytes = kStack;
    void* const stacks = mmap(nullptr, m.stack_bytes * m.fibers.size(), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) {
      std::perror("cux: mmap");
      std::abort();
    }
    m.stacks = static_cast<char*>(stacks);
    for (size_t i = 0; i < m.fibers.size(); ++i) {
      m.fibers[i].strand.stack = m.stacks + i * m.stack_bytes;
      m.fibers[i].strand.stack_bytes = m.stack_bytes;
    }
  }
  SharedMemory& shared = m.shared;
  if (!shared.base) {
    shared.base = static_cast<unsigned char*>(std::aligned_alloc(4096, SharedMemory::kMost));
    shared.cells.resize(SharedMemory::kMost);
  }
  shared.dynamic_bytes = dynamic_bytes;
  shared.static_bytes = 0;
  shared.arrays.clear();
  shared.end = SharedMemory::kGap + dynamic_bytes + SharedMemory::kGap;
}

}  // namespace cux::host
