// The checker still finds what it is for: kernels with a bug in them, of every kind, each beside its mended twin.
//
// A case launches its kernel in all schedules, with the bug and without. With it a report must be of the kind that the case
// expects and name the line that ends in "// bug: <case>"; without it there must be none.
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "cuda/host/report.h"
#include "planted_kernels.h"

using cux::Error;
using namespace planted;

namespace {

struct Case {
  const char* name;
  const char* kind;
  Error (*run)(bool bug);
};

#define CASE(name, kind, blocks, threads, ...) \
  {#name, kind, [](bool bug) { return run(name, bug, blocks, threads __VA_OPT__(, ) __VA_ARGS__); }}

const Case kCases[] = {
    CASE(missing_syncthreads, "race", 1, 128),
    CASE(missing_second_syncthreads, "race", 1, 128),
    CASE(missing_syncwarp, "race", 1, 32),
    CASE(syncwarp_of_others, "race", 1, 32),
    CASE(shared_counter, "race", 2, 64),
    CASE(counter_of_blocks, "race-blocks", 4, 32),
    CASE(wrong_named_barrier, "race", 1, 128),
    CASE(unwritten_shared, "unwritten-shared", 1, 32),
    {"unwritten_global", "unwritten-global", unwritten_global},
    CASE(copy_not_waited_for, "copy-in-flight", 1, 32),
    CASE(one_group_too_many, "copy-in-flight", 1, 32),
    CASE(copy_of_another_thread, "race", 1, 32),
    {"copy_uncommitted", "copy-uncommitted", copy_uncommitted},
    CASE(divergent_barrier, "divergent-barrier", 1, 64),
    CASE(barrier_in_a_branch, "deadlock", 1, 64),
    CASE(divergent_warp, "divergent-warp", 1, 32),
    CASE(mask_mismatch, "mask-mismatch", 1, 32),
    CASE(mask_without_self, "mask-without-self", 1, 32),
    CASE(shuffle_after_exit, "shuffle-of-absent-lane", 1, 32),
    CASE(partial_mma, "partial-warp", 1, 32),
    CASE(named_barrier_of_too_few, "deadlock", 1, 96),
    CASE(past_dynamic_shared, "outside-shared", 1, 32, 1024, 128),
    CASE(before_dynamic_shared, "outside-shared", 1, 32, 1024, 128),
    CASE(past_static_shared, "outside-shared", 1, 32),
    CASE(past_global, "outside-global", 4, 32, 100),
    CASE(before_global, "outside-global", 1, 32),
    CASE(local_of_another_thread, "foreign-local", 1, 32),
    CASE(host_memory, "outside-global", 1, 32),
    CASE(misaligned_plain, "misaligned", 1, 32),
    CASE(misaligned_words, "misaligned", 1, 32),
    CASE(misaligned_copy, "misaligned", 1, 32),
    {"offset_of_32_bits", "outside-global", offset_of_32_bits},
    {"grid_y", "launch", [](bool bug) { return launch_with(bug, dim3(1, 65536), dim3(1, 4), 0); }},
    {"grid_z", "launch", [](bool bug) { return launch_with(bug, dim3(1, 1, 65536), dim3(4), 0); }},
    {"empty_grid", "launch", [](bool bug) { return launch_with(bug, dim3(0), dim3(1), 0); }},
    {"shared_of_86", "shared-too-large",
     [](bool bug) { return on_card(86, bug, 84 << 10, 83 << 10); }},  // 16 KiB of it are static
    {"shared_of_80", "shared-too-large",
     [](bool bug) { return on_card(80, bug, 164 << 10, 147 << 10); }},
    {"shared_of_90", "shared-too-large",
     [](bool bug) { return on_card(90, bug, 228 << 10, 211 << 10); }},
    CASE(sum_of_blocks, "order-dependent", 50, 1),
};

/// The lines that end in "// bug: name", by name.
std::map<std::string, int> marked_lines() {
  std::map<std::string, int> lines;
  std::ifstream file(PLANTED_KERNELS);
  constexpr std::string_view mark = "// bug: ";
  std::string line;
  for (int number = 1; std::getline(file, line); ++number)
    if (const size_t at = line.find(mark); at != std::string::npos)
      lines[line.substr(at + mark.size())] = number;
  return lines;
}

/// What is wrong with the reports of a kernel with the bug; nothing, if nothing is.
std::string missed(const Case& c, const std::map<std::string, int>& lines) {
  const auto marked = lines.find(c.name);  // launches have none
  const std::string place =
      marked == lines.end() ? "" : "planted_kernels.h:" + std::to_string(marked->second);
  std::string got;
  for (const cux::host::Report& report : cux::host::reports()) {
    if (report.kind == c.kind && report.text.find(place) != std::string::npos) return "";
    got += "\n  [" + report.kind + "] " + report.text;
  }
  return std::string("expected ") + c.kind + " " + place + ", got:" + got;
}

}  // namespace

int main() {
  cux::host::settings().every_schedule = true;
  const std::map<std::string, int> lines = marked_lines();
  int failures = 0;
  const auto fail = [&](const Case& c, const std::string& what) {
    std::printf("FAILED %s: %s\n", c.name, what.c_str());
    ++failures;
  };
  for (const Case& c : kCases) {
    if (const Error error = c.run(false)) fail(c, std::string("the mended kernel: ") + error);
    c.run(true);
    if (const std::string what = missed(c, lines); !what.empty()) fail(c, what);
  }
  std::printf("%zu kernels with a bug, %d failures\n", std::size(kCases), failures);
  return failures != 0;
}
