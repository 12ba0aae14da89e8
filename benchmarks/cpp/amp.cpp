// Gradients of one tensor: statistics and unscaling.
#include "amp/cpu/kernels/params.h"
#include "bench.h"

namespace fulgurite {

FULGURITE_KERNEL(amp_gradients, amp_grad_stats, GradStatsFn);
FULGURITE_KERNEL(amp_gradients, amp_unscale, UnscaleTaskFn);

namespace {

void measure(bench::Bench& bench, Dtype dtype, int64_t n) {
  const bench::Memory gradient(dtype, n);
  const Walk walk{0, n, 0, 0};
  const GradTensor tensor{gradient.data(), dtype};
  const GradientsProblem problem{&walk, nullptr, &tensor, 1, 1.0};
  const int64_t blocks = (n + kStatsBlock - 1) / kStatsBlock;
  std::vector<double> sums(static_cast<size_t>(blocks));
  const bench::Memory bad(blocks);
  const GradStatsParams params{problem, sums.data(), bad.as<bool>()};
  const std::string shape = std::to_string(n) + " elements";
  const double read = static_cast<double>(bench::bytes_of(dtype) * n);

  const auto stats = amp_grad_stats_kernel.get(Dtype::kFloat32);
  bench.time(amp_grad_stats_kernel, dtype, shape, bench::bytes(read), [&] {
    for (int64_t block = 0; block < blocks; ++block) stats(params, 0, block, block);
  });
  const auto unscale = amp_unscale_kernel.get(Dtype::kFloat32);
  bench.time(amp_unscale_kernel, dtype, shape, bench::bytes(2 * read),
             [&] { unscale(problem, 0, n); });
}

}  // namespace
}  // namespace fulgurite

int main(int argc, char** argv) {
  using namespace fulgurite;
  bench::Bench bench(argc, argv);
  bench.for_sets([&] {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16})
      for (const int64_t n : bench.shapes<int64_t>({1 << 12, 1 << 18, 1 << 24}))
        measure(bench, dtype, n);
  });
  return bench.finish();
}
