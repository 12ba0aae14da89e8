// Barriers and warp operations: who waits for whom, what it shows them of each other's accesses, and what of it is undefined on
// a card.
#include <algorithm>

#include "cuda/host/machine.h"
#include "cuda/host/report.h"

namespace cux::host {
namespace {

constexpr uint32_t kAllLanes = ~uint32_t{0};

void run_in_order(int first, uint32_t mask, State waiting) {
  Machine& m = machine();
  for (int k = 0; k < kWarp; ++k) {
    const int lane = m.schedule.order == Order::kDescending ? kWarp - 1 - k : k;
    if (mask >> lane & 1 && m.fibers[static_cast<size_t>(first + lane)].state == waiting)
      make_ready(first + lane);
  }
}

/// Warps have met: those in `shown` now see what all in `met` had done or seen before.
void meet(uint32_t met, uint32_t shown) {
  Machine& m = machine();
  uint32_t together[kMostWarps] = {};
  const int warps = m.warps_in_block();
  for (int w = 0; w < warps; ++w) {
    if (!(met >> w & 1)) continue;
    Warp& warp = m.warps[w];
    warp.shown[w] = ++warp.barriers;
    for (int other = 0; other < warps; ++other)
      together[other] = std::max(together[other], warp.shown[other]);
    end_traffic(warp);
  }
  for (int w = 0; w < warps; ++w)
    if (shown >> w & 1) std::copy_n(together, warps, m.warps[w].shown);
}

/// The lanes of `mask` see what each of them had done or seen before.
void meet_lanes(int first, uint32_t mask) {
  Machine& m = machine();
  uint32_t together[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Fiber& fiber = m.fibers[static_cast<size_t>(first + lane)];
    fiber.shown[lane] = ++fiber.syncs;
    for (int other = 0; other < kWarp; ++other)
      together[other] = std::max(together[other], fiber.shown[other]);
  }
  for (int lane = 0; lane < kWarp; ++lane)
    if (mask >> lane & 1)
      std::copy_n(together, kWarp, m.fibers[static_cast<size_t>(first + lane)].shown);
}

bool is_aligned(Operation operation) {
  return operation == Operation::kLdmatrix || operation == Operation::kMma;
}

void complete(Warp& warp, int number, size_t index) {
  Machine& m = machine();
  const Pending p = warp.pending[index];
  warp.pending.erase(warp.pending.begin() + static_cast<ptrdiff_t>(index));
  if (is_aligned(p.operation) && p.arrived != kAllLanes)
    fail("partial-warp", "all lanes of a warp must execute %s, and only %08x do",
         to_string(p.site).c_str(), p.arrived);
  if (p.operation == Operation::kSyncwarp) meet_lanes(number * kWarp, p.arrived);
  end_traffic(warp);
  ++counts().warp_operations;
  Lanes lanes;
  lanes.mask = p.arrived;
  std::copy_n(p.payload, kWarp, lanes.payload);
  m.combining = p.site;
  p.combine(lanes);
  m.combining = 0;
  run_in_order(number * kWarp, p.arrived, State::kInCollective);
}

bool is_complete(const Warp& warp, const Pending& p) {
  return ((p.arrived | warp.exited) & p.mask) == p.mask;
}

/// The operation that the running lane joins, or a new one.
size_t join(Warp& warp, uint32_t mask, uint32_t lane, Operation operation, Combine combine,
            Site site) {
  for (size_t i = 0; i < warp.pending.size(); ++i) {
    const Pending& p = warp.pending[i];
    if (p.mask == mask && !(p.arrived & lane)) {
      if (p.combine != combine || (is_aligned(operation) && p.site != site))
        fail("divergent-warp",
             "the lane executes %s while lanes %08x of its warp wait in another operation, at %s",
             to_string(site).c_str(), p.arrived, to_string(p.site).c_str());
      return i;
    }
    if (p.mask & lane)
      fail("mask-mismatch",
           "mask %08x at %s, but lanes %08x wait at %s with mask %08x, which names this lane", mask,
           to_string(site).c_str(), p.arrived, to_string(p.site).c_str(), p.mask);
  }
  warp.pending.push_back({mask, 0, operation, site, combine, {}});
  return warp.pending.size() - 1;
}

void release_barrier(Machine& m) {
  m.at_barrier = 0;
  ++counts().barriers;
  meet(kAllLanes, kAllLanes);
  const int warps = m.warps_in_block();
  for (int k = 0; k < warps; ++k) {
    const int w = m.schedule.order == Order::kDescending ? warps - 1 - k : k;
    run_in_order(w * kWarp,
                 w == warps - 1 && m.threads % kWarp ? (1u << m.threads % kWarp) - 1 : kAllLanes,
                 State::kAtBarrier);
  }
}

}  // namespace

void complete_collectives(Warp& warp, int number) {
  for (size_t i = 0; i < warp.pending.size();)
    if (is_complete(warp, warp.pending[i])) {
      complete(warp, number, i);
      i = 0;
    } else {
      ++i;
    }
}

void complete_barrier() {
  Machine& m = machine();
  if (m.at_barrier && m.at_barrier + m.done == m.threads) release_barrier(m);
}

void barrier(Location at) {
  const AtWork at_work;
  Machine& m = machine();
  const Site site = site_of(at);
  if (m.at_barrier == 0)
    m.barrier_site = site;
  else if (m.barrier_site != site)
    report("divergent-barrier", "__syncthreads at %s while other threads of the block wait at %s",
           to_string(site).c_str(), to_string(m.barrier_site).c_str());
  if (++m.at_barrier + m.done == m.threads)
    release_barrier(m);
  else
    wait(State::kAtBarrier, site);
}

void named_barrier(int id, int threads, bool waits, Location at) {
  const AtWork at_work;
  Machine& m = machine();
  const Site site = site_of(at);
  if (id < 1 || id >= kNamedBarriers || threads % kWarp || threads < kWarp || threads > m.threads)
    fail("named-barrier",
         "barrier %d of %d threads at %s: expected 1 to 15, and whole warps of the block's %d "
         "threads",
         id, threads, to_string(site).c_str(), m.threads);
  NamedBarrier& named = m.named[id];
  if (named.arrived && named.expected != threads)
    fail("named-barrier", "barrier %d at %s of %d threads, but others came to it for %d", id,
         to_string(site).c_str(), threads, named.expected);
  const ThreadContext& thread = m.running->thread;
  named.expected = threads;
  named.warps |= 1u << thread.warp;
  if (waits) {
    named.waiting_warps |= 1u << thread.warp;
    named.waiting.push_back(thread.linear);
  }
  if (++named.arrived < threads) {
    if (waits) wait(State::kAtNamedBarrier, site);
    return;
  }
  ++counts().barriers;
  meet(named.warps, named.waiting_warps);
  for (const int waiting : named.waiting)
    if (waiting != thread.linear) make_ready(waiting);
  named = {};
}

void collective(uint32_t mask, Operation operation, void* payload, Combine combine, Location at) {
  const AtWork at_work;
  Machine& m = machine();
  const ThreadContext& thread = m.running->thread;
  Warp& warp = m.warps[thread.warp];
  const Site site = site_of(at);
  const uint32_t lane = 1u << thread.lane;
  const int lanes = m.threads - thread.warp * kWarp;
  if (lanes < kWarp && !is_aligned(operation)) mask &= (1u << lanes) - 1;
  if (!(mask & lane))
    fail("mask-without-self", "mask %08x at %s does not name the lane itself", mask,
         to_string(site).c_str());
  const size_t i = join(warp, mask, lane, operation, combine, site);
  warp.pending[i].arrived |= lane;
  warp.pending[i].payload[thread.lane] = payload;
  if (is_complete(warp, warp.pending[i]))
    complete(warp, thread.warp, i);
  else
    wait(State::kInCollective, site);
}

void read_of_absent_lane(int lane, int from, uint32_t mask) {
  fail("shuffle-of-absent-lane",
       "lane %d reads of lane %d at %s, which is not among those that came, %08x", lane, from,
       to_string(machine().combining).c_str(), mask);
}

}  // namespace cux::host
