// What the backward's kernels cost, counted, against their budgets.
#include "attention/cuda/kernels/backward_tiles.cuh"
#include "budgets.h"

namespace {

using namespace attention_test;

/// Without a mask, N = M = 1,024 of one head: dQ takes three products of all pairs, dK and dV four.
template <class Tiles>
void check(double query_wavefronts, double key_wavefronts) {
  using Query = typename Tiles::Query;
  using Key = typename Tiles::Key;
  using T = typename Query::T;
  constexpr int64_t kSize = 1024, kD = Query::kD, kDv = Query::kDv;
  const Problem<T> problem({.Hq = 1, .N = kSize, .M = kSize, .D = kD, .Dv = kDv});
  AttentionCudaBackward p{};
  static_cast<AttentionCudaParams&>(p) = problem.p;
  p.wide = true;
  const Array<T> grad_out(std::vector<T>(kSize * kDv)), query(kSize * kD), key(kSize * kD),
      value(kSize * kDv);
  const std::vector<float> zeros(kSize);
  const Array<float> base(zeros), delta(zeros);
  p.grad_out = {grad_out.data(), {kSize * kDv, kSize * kDv, kDv, 1}};
  p.base = base.data();
  p.delta = delta.data();
  p.grad_query = {query.data(), {kSize * kD, kSize * kD, kD}};
  p.grad_key = {key.data(), {kSize * kD, kSize * kD, kD}};
  p.grad_value = {value.data(), {kSize * kDv, kSize * kDv, kDv}};

  constexpr double kProduct = kSize / 16. * kSize / 8 / 16;  // mma for each column of its depth
  constexpr double kRow = (kD + kDv) * 2;  // bytes of a query, or key, with its dO, or value
  expect_counts("dQ", cuda::launch_backward_query<Query, true>(p, nullptr),
                {.mma = kProduct * (2 * kD + kDv),
                 .wavefronts = query_wavefronts,
                 .read = kSize * kRow * (1 + double{kSize} / Query::kRows) + kSize * 4 * 8,
                 .written = kSize * kD * 2});
  expect_counts("dK and dV", cuda::launch_backward_key<Key, true>(p, nullptr),
                {.mma = kProduct * 2 * (kD + kDv),
                 .wavefronts = key_wavefronts,
                 .read = kSize * kRow * (1 + double{kSize} / Key::kRows) +
                         kSize * 8 * double{kSize} / Key::kRows,
                 .written = kSize * kRow});
}

}  // namespace

int main() {
  cux::host::settings().counts_file = "/dev/null";
  check<cuda::BackwardTiles<BFloat16, true, 64>>(1.7, 1.9);
  check<cuda::BackwardTiles<BFloat16, true, 128>>(2.6, 2.8);
  return attention_test::report_counts();
}
