// What the forward costs, counted, against its budgets: products of the tensor cores, wavefronts of shared memory for each of them,
// bank conflicts, sectors, bytes a lane, copies beside products; and how evenly its blocks end on a card.
#include <algorithm>
#include <queue>

#include "attention/cuda/kernels/forward_tiles.cuh"
#include "cuda/host/counts.h"
#include "problem.h"

namespace {

using namespace attention_test;
using cux::host::counts;

bool all_right = true;

void expect(bool is_so, const char* what, double got, double budget) {
  if (is_so) return;
  std::printf("FAILED %s: got %g, budget %g\n", what, got, budget);
  all_right = false;
}

/// Without a mask, N = M = 1,024 of one head.
template <class Tile, bool kPlain>
void check(double wavefronts_of_mma) {
  constexpr int64_t kSize = 1024;
  Problem<typename Tile::T> problem(
      {.Hq = 1, .N = kSize, .M = kSize, .D = Tile::kD, .Dv = Tile::kDv});
  problem.p.wide = cuda::has_wide_rows(problem.p);
  if (const cux::Error error = cuda::launch_forward<Tile, kPlain>(problem.p, nullptr)) {
    std::printf("FAILED %s\n", error);
    all_right = false;
    return;
  }
  const cux::host::Counts& c = counts();
  const auto mma = static_cast<double>(c.mma);
  std::printf("D %d/%d, %d x %d, %s: wavefronts per mma %.3f, beside copies %.3f\n", Tile::kD,
              Tile::kDv, Tile::kRows, Tile::kKeys, kPlain ? "plain" : "general",
              static_cast<double>(c.wavefronts()) / mma,
              static_cast<double>(c.mma_while_copying) / mma);
  const double formula = kSize / 16 * kSize / 8 * (Tile::kD + Tile::kDv) / 16.;
  expect(mma == formula, "mma", mma, formula);
  expect(static_cast<double>(c.wavefronts()) <= wavefronts_of_mma * mma, "wavefronts per mma",
         static_cast<double>(c.wavefronts()) / mma, wavefronts_of_mma);
  expect(static_cast<double>(c.mma_while_copying) >= 0.9 * mma, "mma beside copies",
         static_cast<double>(c.mma_while_copying) / mma, 0.9);
  uint64_t read = 0, written = 0;
  for (const auto& [line, of] : c.lines) {
    const double excess = static_cast<double>(of.moves) / static_cast<double>(of.ideal_moves);
    if (line.shared) {
      expect(of.moves == of.ideal_moves, "bank conflicts", excess, 1);
      continue;
    }
    (line.write ? written : read) += of.bytes;
    const bool is_lse = line.write && of.bytes_a_lane == 4;
    expect(is_lse || of.bytes_a_lane == 16, "bytes a lane", of.bytes_a_lane, 16);
    expect(is_lse || excess <= 1.05, "sectors", excess, 1.05);
  }
  const double queries = kSize * Tile::kD * 2, values = kSize * Tile::kDv * 2,
               blocks = kSize / Tile::kRows;
  expect(static_cast<double>(read) == queries + blocks * (queries + values), "bytes read",
         static_cast<double>(read), queries + blocks * (queries + values));
  expect(static_cast<double>(written) == values + kSize * 4, "bytes written",
         static_cast<double>(written), values + kSize * 4);
}

/// Blocks go in order to whichever of `places` is free first, each for as long as it has tiles: even share over the last end.
double evenness(const ScoreRule& rule, int places) {
  constexpr int kRows = 128, kKeys = 64;
  AttentionCudaParams p{};
  p.B = 2;
  p.Hq = 16;
  p.N = rule.M;
  p.rule = rule;
  std::priority_queue<double, std::vector<double>, std::greater<>> free;
  for (int i = 0; i < places; ++i) free.push(0);
  double work = 0, end = 0;
  for (uint32_t block = 0; block < static_cast<uint32_t>(p.B * p.Hq * p.N / kRows); ++block) {
    const int64_t i0 = cuda::query_block<kRows>(p, block).i0;
    const TileReach reach(rule, i0, i0 + kRows, kKeys);
    const double length = 1 + reach.end() - reach.first();  // one for queries and results
    const double done = free.top() + length;
    free.pop();
    free.push(done);
    work += length;
    end = std::max(end, done);
  }
  return work / places / end;
}

void check_evenness() {
  ScoreRule rule{};
  rule.M = 4096;
  rule.window_left = rule.window_right = -1;
  for (const int multiprocessors : {108, 132})
    for (const bool causal : {false, true}) {
      rule.causal = causal;
      const double share = evenness(rule, 2 * multiprocessors);
      std::printf("%s on %d multiprocessors: even share over the last end %.3f\n",
                  causal ? "causal" : "all pairs", multiprocessors, share);
      expect(share >= 0.85, "even share over the last end", share, 0.85);
    }
}

}  // namespace

int main() {
  auto& settings = cux::host::settings();
  settings.counts_file = "/dev/null";
  using Plain = cuda::ForwardTiles<BFloat16, true>;
  check<Plain::D64, true>(1.7);
  check<Plain::D80, true>(1.7);
  check<Plain::D96, true>(1.7);
  check<Plain::D128, true>(1.7);
  check<Plain::D192, true>(2.6);
  check<Plain::D256, true>(2.6);
  check_evenness();
  std::printf("%s\n", all_right ? "all counts are within their budgets" : "");
  return !all_right;
}
