// What the executor is told from outside. Variables of the environment are read once; programs may change them by settings().
//
//   CUX_SCHEDULE=asc|desc|random:SEED|all   in which order threads and blocks run; all: each launch in every schedule of
//                                           all_schedules(), and bits that differ between two are reported
//   CUX_ASYNC=late|early                    when a cp.async is carried out: at the wait for it, or at once
//   CUX_PREEMPT=N                           a thread gives way after N accesses; 0: only where it waits
//   CUX_ARCH=80|86|89|90                    the card
//   CUX_CHECK=0|1                           the checker; on wherever kernels are compiled for it
//   CUX_COUNTS=FILE                         appends a line of JSON for each launch
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cux::host {

enum class Order { kAscending, kDescending, kRandom };

struct Schedule {
  Order order = Order::kAscending;
  uint64_t seed = 1;
  bool copies_early = false;
  unsigned preempt = 0;
};
std::string to_string(const Schedule& schedule);

/// Between them every order of two threads, two blocks, and a copy and its neighbours.
std::vector<Schedule> all_schedules();

struct Card {
  int architecture, multiprocessors;
  int shared_bytes;           // that a block may have
  int shared_without_asking;  // the part that needs no attribute of the kernel
};

struct Settings {
  Schedule schedule;
  bool every_schedule = false;
  bool check = false;
  Card card{};
  std::string counts_file;
};
Settings& settings();
const Card& card();
/// 80, 86, 89 or 90; false for others.
bool choose_card(int architecture);

}  // namespace cux::host
