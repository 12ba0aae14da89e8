// What a launch was counted to cost, against what it may.
#pragma once

#include <algorithm>
#include <cstdio>

#include "cuda/host/counts.h"
#include "problem.h"

namespace attention_test {

inline bool counts_are_right = true;

inline void expect(bool is_so, const char* what, double got, double budget) {
  if (is_so) return;
  std::printf("FAILED %s: got %g, budget %g\n", what, got, budget);
  counts_are_right = false;
}

struct Budget {
  double mma;            // exactly
  double wavefronts;     // for each mma, at most
  double read, written;  // bytes, exactly
};

/// Of the last launch: besides its budget no bank conflicts, 16 bytes a lane and no sector too many but for single numbers of rows,
/// and copies under way beside nine of ten mma.
inline void expect_counts(const char* kernel, cux::Error error, const Budget& budget) {
  if (error) {
    std::printf("FAILED %s: %s\n", kernel, error);
    counts_are_right = false;
    return;
  }
  const cux::host::Counts& c = cux::host::counts();
  const auto mma = static_cast<double>(c.mma),
             wavefronts = static_cast<double>(c.wavefronts()) / mma,
             beside = static_cast<double>(c.mma_while_copying) / mma;
  std::printf("%s: wavefronts per mma %.3f, beside copies %.3f\n", kernel, wavefronts, beside);
  expect(mma == budget.mma, "mma", mma, budget.mma);
  expect(wavefronts <= budget.wavefronts, "wavefronts per mma", wavefronts, budget.wavefronts);
  expect(beside >= 0.9, "mma beside copies", beside, 0.9);
  double read = 0, written = 0;
  for (const auto& [line, of] : c.lines) {
    const double excess = static_cast<double>(of.moves) / static_cast<double>(of.ideal_moves);
    if (line.shared) {
      expect(of.moves == of.ideal_moves, "bank conflicts", excess, 1);
      continue;
    }
    (line.write ? written : read) += static_cast<double>(of.bytes);
    if (of.bytes_a_lane == 4) continue;  // lse, bases and δ
    expect(of.bytes_a_lane == 16, "bytes a lane", of.bytes_a_lane, 16);
    expect(excess <= 1.05, "sectors", excess, 1.05);
  }
  expect(read == budget.read, "bytes read", read, budget.read);
  expect(written == budget.written, "bytes written", written, budget.written);
}

inline int report_counts() {
  std::printf("%s\n", counts_are_right ? "all counts are within their budgets" : "");
  return !counts_are_right;
}

}  // namespace attention_test
