// One parameter and its states, dense: AdamW's step in the ways to keep a parameter, 8-bit states, splitting.
#include <cmath>

#include "bench.h"
#include "optim/cpu/kernels/params.h"

namespace fulgurite {

FULGURITE_KERNEL(optim_adamw, adamw_update, AdamwTaskFn);
FULGURITE_KERNEL(optim_adamw_8bit, adamw_8bit_update, Adamw8bitTaskFn);
FULGURITE_KERNEL(optim_split_master, split_master, SplitTaskFn);
FULGURITE_KERNEL(optim_split_master, join_master, SplitTaskFn);

namespace {

enum class Master { kNone, kFloat32, kSplit, kStochastic };

/// Operands of one tensor, and the problem of its step.
class Step {
 public:
  Step(Dtype dtype, int64_t n, Master master)
      : scalars_(step_scalars({1e-3, 0.9, 0.999, 1e-8, 0.01, 0}, 100, 1, true, false)),
        walk_{0, n, 0, 0} {
    add(kParam, dtype, n, false);
    add(kGrad, dtype, n, false);
    if (master == Master::kFloat32) add(kMaster, Dtype::kFloat32, n, false);
    if (master == Master::kSplit) {
      add(kMaster, Dtype::kBFloat16, n, true);
      tensor_.split = true;
    }
    tensor_.stochastic = master == Master::kStochastic;
  }
  void add_moments(int64_t n) {
    add(kExpAvg, Dtype::kFloat32, n, true);
    add(kExpAvgSq, Dtype::kFloat32, n, true);
  }
  /// Moments as codes: m and v of 0, which the steps move away from it.
  void add_codes(int64_t n) {
    for (const AdamwOperand moment : {kExpAvg, kExpAvgSq}) {
      memory_.emplace_back(n);
      tensor_.data[moment] = memory_.back().data();
      tensor_.bytes[moment] = 1;
      bytes_ += 2 * n;
      for (int64_t i = 0; i < n; ++i) memory_.back().as<uint8_t>()[i] = moment == kExpAvg ? 127 : 0;
    }
  }
  AdamwProblem problem() const { return {&walk_, nullptr, &tensor_, &scalars_, 1, {}, false}; }
  /// The gradient is read, everything else is read and written.
  double bytes() const { return static_cast<double>(bytes_); }

 private:
  void add(AdamwOperand operand, Dtype dtype, int64_t n, bool zeros) {
    const int64_t size = bench::bytes_of(dtype);
    if (zeros)
      memory_.emplace_back(size * n);
    else
      memory_.emplace_back(dtype, n);
    tensor_.data[operand] = memory_.back().data();
    tensor_.dtype[operand] = dtype;
    tensor_.bytes[operand] = static_cast<uint8_t>(size);
    bytes_ += (operand == kGrad ? 1 : 2) * size * n;
  }

  std::vector<bench::Memory> memory_;
  AdamwTensor tensor_{};
  AdamwScalars scalars_;
  Walk walk_;
  int64_t bytes_ = 0;
};

void measure_adamw(bench::Bench& bench, int64_t n, Dtype dtype, Master master, const char* kept) {
  Step step(dtype, n, master);
  step.add_moments(n);
  const AdamwProblem p = step.problem();
  const auto update = adamw_update_kernel.get(dtype);
  bench.time(adamw_update_kernel, dtype, std::to_string(n) + " elements" + kept,
             bench::bytes(step.bytes()), [&] { update(p, 0, n); });
}

void measure_8bit(bench::Bench& bench, int64_t n, Dtype dtype) {
  static const DynamicMap signed_map = make_dynamic_map(true),
                          unsigned_map = make_dynamic_map(false);
  Step step(dtype, n, Master::kNone);
  step.add_codes(n);
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  const bench::Memory scales(8 * blocks);
  const BlockScales of_blocks{scales.as<float>(), scales.as<float>() + blocks, 1, 1};
  const Adamw8bitProblem p{step.problem(), &of_blocks, &signed_map, &unsigned_map};
  const auto update = adamw_8bit_update_kernel.get(dtype);
  bench.time(adamw_8bit_update_kernel, dtype, std::to_string(n) + " elements",
             bench::bytes(step.bytes()), [&] { update(p, 0, n); });
}

void measure_split(bench::Bench& bench, int64_t n) {
  const bench::Memory master(Dtype::kFloat32, n), high(2 * n), low(2 * n);
  const SplitProblem p{master.as<float>(), high.as<uint16_t>(), low.as<int16_t>()};
  const std::string shape = std::to_string(n) + " elements";
  const bench::Work work = bench::bytes(8.0 * static_cast<double>(n));
  const auto split = split_master_kernel.get(Dtype::kFloat32);
  bench.time(split_master_kernel, Dtype::kFloat32, shape, work, [&] { split(p, 0, n); });
  const auto join = join_master_kernel.get(Dtype::kFloat32);
  bench.time(join_master_kernel, Dtype::kFloat32, shape, work, [&] { join(p, 0, n); });
}

}  // namespace
}  // namespace fulgurite

int main(int argc, char** argv) {
  using namespace fulgurite;
  bench::Bench bench(argc, argv);
  bench.for_sets([&] {
    for (const int64_t n : bench.shapes<int64_t>({1 << 12, 1 << 16, 1 << 23})) {
      measure_adamw(bench, n, Dtype::kFloat32, Master::kNone, "");
      measure_adamw(bench, n, Dtype::kBFloat16, Master::kFloat32, ", float32 master");
      measure_adamw(bench, n, Dtype::kBFloat16, Master::kSplit, ", split master");
      measure_adamw(bench, n, Dtype::kBFloat16, Master::kStochastic, ", stochastic");
      measure_8bit(bench, n, Dtype::kFloat32);
      measure_8bit(bench, n, Dtype::kBFloat16);
      measure_split(bench, n);
    }
  });
  return bench.finish();
}
