// Launches: what a card would refuse, the order of blocks, and one schedule or all of them.
#include "cuda/host/executor.h"

#include <algorithm>
#include <numeric>

#include "cuda/host/machine.h"
#include "cuda/host/memory.h"
#include "cuda/host/report.h"

namespace cux::host {
namespace {

/// What every card refuses, and this one.
bool is_refused(dim3 grid, dim3 block, size_t dynamic_bytes) {
  constexpr unsigned kMostX = (1u << 31) - 1, kMostYZ = 65535;
  const auto threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > kMostX || grid.y > kMostYZ ||
      grid.z > kMostYZ)
    report("launch", "a grid of (%u, %u, %u): x is from 1 to 2^31 - 1, y and z to 65535", grid.x,
           grid.y, grid.z);
  else if (threads < 1 || threads > kMostThreads || block.z > 64)
    report("launch", "a block of (%u, %u, %u): of 1 to 1024 threads, z up to 64", block.x, block.y,
           block.z);
  else if (dynamic_bytes > static_cast<size_t>(card().shared_bytes))
    report("shared-too-large", "%zu bytes of dynamic shared memory, and a block of sm_%d has %d",
           dynamic_bytes, card().architecture, card().shared_bytes);
  return !reports().empty();
}

std::vector<uint64_t> order_of_blocks(uint64_t n) {
  Machine& m = machine();
  std::vector<uint64_t> order(n);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (m.schedule.order == Order::kDescending) std::reverse(order.begin(), order.end());
  if (m.schedule.order == Order::kRandom)
    for (uint64_t i = n; i > 1; --i) std::swap(order[i - 1], order[m.next_random() % i]);
  return order;
}

/// False if the launch ended early or something was reported.
bool run_once(const Schedule& schedule, dim3 grid, dim3 block, size_t dynamic_bytes) {
  Machine& m = machine();
  m.schedule = schedule;
  m.random = schedule.seed * 0x9e3779b97f4a7c15u + 1;
  m.first_block = m.block + 1;
  m.accesses = 0;
  prepare(static_cast<int>(block.x * block.y * block.z), dynamic_bytes);
  counts() = {};
  for (const uint64_t i : order_of_blocks(uint64_t{grid.x} * grid.y * grid.z)) {
    const dim3 at(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                  static_cast<unsigned>(i / grid.x / grid.y));
    if (!run_block(grid, block, at)) return false;
  }
  return reports().empty();
}

void run_all(dim3 grid, dim3 block, size_t dynamic_bytes) {
  const std::vector<Schedule> schedules = all_schedules();
  const std::string first = to_string(schedules[0]);
  WrittenBits bits;
  bits.begin();
  bool fine = run_once(schedules[0], grid, block, dynamic_bytes);
  for (size_t s = 1; s < schedules.size() && fine; ++s) {
    if (s == 1)
      bits.keep_and_restore();
    else
      bits.restore();
    bits.begin();
    fine = run_once(schedules[s], grid, block, dynamic_bytes);
    if (fine) bits.compare(first.c_str(), to_string(schedules[s]).c_str());
    fine = fine && reports().empty();
  }
  bits.end();
}

}  // namespace

const char* run(const void* kernel, dim3 grid, dim3 block, size_t dynamic_bytes,
                const std::function<void()>& body) {
  Machine& m = machine();
  const Settings& s = settings();
  begin_reports(kernel);
  m.body = &body;
  if (s.every_schedule && !s.check) {
    std::fprintf(stderr,
                 "cux: all schedules can be compared only for kernels compiled for the checker\n");
    std::exit(2);
  }
  if (!is_refused(grid, block, dynamic_bytes)) {
    if (s.every_schedule)
      run_all(grid, block, dynamic_bytes);
    else
      run_once(s.schedule, grid, block, dynamic_bytes);
    write_counts(grid, block, dynamic_bytes, m.shared.static_bytes);
  }
  return reports().empty() ? nullptr : reports()[0].text.c_str();
}

}  // namespace cux::host
