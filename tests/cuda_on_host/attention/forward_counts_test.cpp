// What the forward costs, counted, against its budgets: products of the tensor cores, wavefronts of shared memory for each of them,
// bank conflicts, sectors, bytes a lane, copies beside products; and how evenly its blocks end on a card.
#include <algorithm>
#include <queue>

#include "attention/cuda/kernels/forward_tiles.cuh"
#include "budgets.h"

namespace {

using namespace attention_test;

/// Without a mask, N = M = 1,024 of one head.
template <class Tile>
void check(double wavefronts) {
  constexpr int64_t kSize = 1024, kD = Tile::kD, kDv = Tile::kDv;
  Problem<typename Tile::T> problem({.Hq = 1, .N = kSize, .M = kSize, .D = kD, .Dv = kDv});
  problem.p.wide = true;
  const double row = (kD + kDv) * 2;  // bytes of a key and its value
  expect_counts("forward", cuda::launch_forward<Tile, true>(problem.p, nullptr),
                {.mma = kSize / 16. * kSize / 8 * (kD + kDv) / 16,
                 .wavefronts = wavefronts,
                 .read = kSize * (kD * 2 + row * kSize / Tile::kRows),
                 .written = kSize * (kDv * 2 + 4)});
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
  cux::host::settings().counts_file = "/dev/null";
  using Plain = cuda::ForwardTiles<BFloat16, true>;
  check<Plain::D64>(1.7);
  check<Plain::D80>(1.7);
  check<Plain::D96>(1.7);
  check<Plain::D128>(1.7);
  check<Plain::D192>(2.6);
  check<Plain::D256>(2.6);
  check_evenness();
  return attention_test::report_counts();
}
