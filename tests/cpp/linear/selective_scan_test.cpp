// Selective scans against plain loops: layouts, groups, packs, states, what is kept for the backward.
#include "catch.h"
#include "scan_problem.h"
#include "scratch.h"

namespace fulgurite {
namespace FULGURITE_VARIANT {
SelectiveScanTaskFn selective_scan;
SelectiveScanLayoutFn selective_scan_layout;
}  // namespace FULGURITE_VARIANT
}  // namespace fulgurite

using namespace fulgurite;

namespace {

constexpr double kUnwritten = 99;

void check(const ScanProblem& q) {
  const ScanSizes& size = q.size;
  INFO("dtype " << int(q.dtype) << ", B " << size.B << ", D " << size.D << ", L " << size.L
                << ", N " << size.N << ", G " << size.G << ", sequences " << q.sequences
                << ", strides " << q.u.channel << ", " << q.u.position);
  const int64_t outputs = size.B * size.D * size.L, states = q.sequences * size.D * size.N,
                blocks = size.B * size.L / kKeptEvery + q.sequences;
  Elements out(q.dtype, outputs + 8, kUnwritten), state(q.sums, states + 8, kUnwritten),
      kept(q.sums, blocks * size.D * size.N + 1, kUnwritten);
  SelectiveScanParams p{};
  q.describe(p);
  p.out = out.data();
  p.state = state.data();
  p.kept = kept.data();
  int64_t bytes = 0;
  FULGURITE_VARIANT::selective_scan_layout(p, &bytes);
  run(FULGURITE_VARIANT::selective_scan, p, q.sequences * scan_tasks_of_sequence(p, kScanChannels),
      bytes);
  for (int64_t i = 0; i < 8; ++i) {
    REQUIRE(out[outputs + i] == kUnwritten);
    REQUIRE(state[states + i] == kUnwritten);
  }
  for (int64_t s = 0; s < q.sequences; ++s) {
    const Span span = q.span(s);
    for (int64_t d = 0; d < size.D; ++d) {
      const ScanProblem::Channel expected = q.channel(s, d);
      for (int64_t t = 0; t < span.length; ++t)
        REQUIRE(near(q.dtype, out[(span.batch * size.D + d) * size.L + span.start + t],
                     expected.out[static_cast<size_t>(t)]));
      for (int64_t n = 0; n < size.N; ++n) {
        REQUIRE(near(q.sums, state[(s * size.D + d) * size.N + n],
                     expected.state[static_cast<size_t>(n)]));
        if (span.length > 0)
          REQUIRE(kept[(span.block * size.D + d) * size.N + n] ==
                  (q.started ? q.initial(s, d, n) : 0));
      }
    }
  }
}

}  // namespace

TEST_CASE("scans of every layout") {
  for (const Dtype dtype : kDtypes)
    for (const SignalOrder order : kSignalOrders)
      for (const int64_t L : {0, 1, 5, 33}) {
        check({dtype, {2, 5, L, 3, 1}, order, true, true, true, false});
        check({dtype, {1, 37, L, 4, 1}, order, false, false, false, true});
        check({dtype, {1, 6, L, 17, 2}, order, true, true, true, true});
      }
}

TEST_CASE("groups narrower than a vector, no states, several blocks") {
  check({Dtype::kFloat32, {2, 6, 9, 2, 6}, SignalOrder::kPositionsLast, true, true, false, false});
  check({Dtype::kFloat32, {2, 6, 9, 0, 1}, SignalOrder::kChannelsLast, true, true, true, false});
  check({Dtype::kFloat32, {1, 40, 100, 16, 1}, SignalOrder::kChannelsLast, true, true, true, true});
}

TEST_CASE("scans of a pack do not see each other") {
  for (const Dtype dtype : kDtypes)
    for (const int64_t split : {1, 20, 35})
      check({dtype, {1, 6, 70, 4, 1, split}, SignalOrder::kChannelsLast, true, true, true, false});
}
