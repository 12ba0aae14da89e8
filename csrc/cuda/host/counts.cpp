#include "cuda/host/counts.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/host/machine.h"

namespace cux::host {
namespace {

constexpr unsigned kSector = 32, kBanks = 32, kBankBytes = 4;

Counts current;

/// How many different ones there are.
size_t distinct(std::vector<uintptr_t>& values) {
  std::sort(values.begin(), values.end());
  return static_cast<size_t>(std::unique(values.begin(), values.end()) - values.begin());
}

using Lane = const LaneAccess*;

/// A warp's 32 lanes move 128 bytes at once: all of them 4 bytes, a half 8, a quarter 16.
void count_shared(LineCounts& line, const Lane* lanes, size_t n) {
  const unsigned width = line.bytes_a_lane, together = width <= 4 ? 32 : width == 8 ? 16 : 8;
  for (unsigned first = 0; first < kWarp; first += together) {
    std::vector<uintptr_t> words[kBanks];
    bool any = false;
    for (size_t k = 0; k < n; ++k) {
      const LaneAccess& a = *lanes[k];
      if (a.lane / together != first / together) continue;
      any = true;
      for (uintptr_t w = a.address / kBankBytes; w <= (a.address + a.bytes - 1) / kBankBytes; ++w)
        words[w % kBanks].push_back(w);
    }
    if (!any) continue;
    size_t longest = 1;
    for (auto& bank : words) longest = std::max(longest, distinct(bank));
    line.moves += longest;
    line.ideal_moves += 1;
  }
}

void count_global(LineCounts& line, const Lane* lanes, size_t n, uint64_t bytes) {
  std::vector<uintptr_t> sectors;
  for (size_t k = 0; k < n; ++k)
    for (uintptr_t s = lanes[k]->address / kSector;
         s <= (lanes[k]->address + lanes[k]->bytes - 1) / kSector; ++s)
      sectors.push_back(s);
  line.moves += distinct(sectors);
  line.ideal_moves += (bytes + kSector - 1) / kSector;
}

void count_request(const Lane* lanes, size_t n) {
  LineCounts& line = current.lines[lanes[0]->line];
  line.bytes_a_lane = lanes[0]->bytes;
  uint64_t bytes = 0;
  for (size_t k = 0; k < n; ++k) bytes += lanes[k]->bytes;
  line.requests += 1;
  line.bytes += bytes;
  lanes[0]->line.shared ? count_shared(line, lanes, n) : count_global(line, lanes, n, bytes);
}

}  // namespace

Counts& counts() { return current; }

uint64_t Counts::wavefronts() const {
  uint64_t sum = 0;
  for (const auto& [line, of] : lines)
    if (line.shared) sum += of.moves;
  return sum;
}

void note_traffic(Fiber& fiber, LaneAccess access) {
  if (settings().counts_file.empty() || machine().combining) return;
  access.lane = static_cast<uint8_t>(fiber.thread.lane);
  machine().warps[fiber.thread.warp].traffic.accesses.push_back(access);
}

void end_traffic(Warp& warp) {
  std::vector<LaneAccess>& all = warp.traffic.accesses;
  if (all.empty()) return;
  struct Numbered {
    int turn;
    Lane access;
  };
  std::vector<Numbered> order;
  std::map<std::pair<Line, uint8_t>, int> turns;
  for (const LaneAccess& a : all) order.push_back({turns[{a.line, a.lane}]++, &a});
  const auto before = [](const Numbered& a, const Numbered& b) {
    return std::pair(a.access->line, a.turn) < std::pair(b.access->line, b.turn);
  };
  std::stable_sort(order.begin(), order.end(), before);
  std::vector<Lane> request;
  for (size_t i = 0; i < order.size(); ++i) {
    request.push_back(order[i].access);
    if (i + 1 < order.size() && !before(order[i], order[i + 1])) continue;
    count_request(request.data(), request.size());
    request.clear();
  }
  all.clear();
}

void count_ldmatrix(Site site, const uintptr_t (&rows)[32]) {
  ++current.ldmatrix;
  if (settings().counts_file.empty()) return;
  LineCounts& line = current.lines[{site, true, false}];
  line.bytes_a_lane = 16;
  line.requests += 1;
  line.bytes += 512;
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::vector<uintptr_t> eighths[8];  // of the banks: a row takes one
    size_t longest = 1;
    for (int r = 0; r < 8; ++r) {
      const uintptr_t row = rows[8 * matrix + r] / 16;
      eighths[row % 8].push_back(row);
    }
    for (auto& bank : eighths) longest = std::max(longest, distinct(bank));
    line.moves += longest;
    line.ideal_moves += 1;
  }
}

void write_counts(dim3 grid, dim3 block, size_t dynamic_bytes, size_t static_bytes) {
  const std::string& path = settings().counts_file;
  if (path.empty()) return;
  FILE* const file = std::fopen(path.c_str(), "a");
  if (!file) {
    std::perror(path.c_str());
    std::exit(2);
  }
  const auto n = [](uint64_t x) { return static_cast<unsigned long long>(x); };
  std::fprintf(
      file,
      "{\"kernel\": \"%s\", \"arch\": %d, \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], "
      "\"dynamic_shared\": %zu, \"static_shared\": %zu, \"blocks\": %llu, \"barriers\": %llu, "
      "\"warp_operations\": %llu, \"copies\": %llu, \"ldmatrix\": %llu, \"mma\": %llu, "
      "\"mma_while_copying\": %llu, \"wavefronts\": %llu, \"lines\": [",
      kernel_name(), card().architecture, grid.x, grid.y, grid.z, block.x, block.y, block.z,
      dynamic_bytes, static_bytes, n(current.blocks), n(current.barriers),
      n(current.warp_operations), n(current.copies), n(current.ldmatrix), n(current.mma),
      n(current.mma_while_copying), n(current.wavefronts()));
  const char* comma = "";
  for (const auto& [line, of] : current.lines) {
    std::fprintf(file,
                 "%s{\"line\": \"%s\", \"space\": \"%s\", \"write\": %s, \"bytes_a_lane\": %u, "
                 "\"requests\": %llu, \"bytes\": %llu, \"%s\": %llu, \"ideal\": %llu}",
                 comma, to_string(line.site).c_str(), line.shared ? "shared" : "global",
                 line.write ? "true" : "false", of.bytes_a_lane, n(of.requests), n(of.bytes),
                 line.shared ? "wavefronts" : "sectors", n(of.moves), n(of.ideal_moves));
    comma = ", ";
  }
  std::fprintf(file, "]}\n");
  std::fclose(file);
}

}  // namespace cux::host
