// A step of AdamW, as its launches take it and as the CPU does.
#pragma once

#include "cuda/table.cuh"
#include "optim/cpu/kernels/params.h"
#include "tensors.h"

namespace fulgurite {

/// What a step brings besides tensors.
struct StepOptions {
  double weight_decay = 0.01, beta1 = 0.9;
  float multiplier = 0.5f, found_inf = 0;
  bool decoupled = true, maximize = false, zero_grads = false, seeded = false;
};

/// Two groups; tensors are in one and the other in turn, and have done steps 0, 1, 2, ….
class Step {
 public:
  Step(Tensors& tensors, const StepOptions& options)
      : tensors_(tensors),
        options_(options),
        hyper_(std::vector<double>{1e-3, options.beta1, 0.999, 1e-8, options.weight_decay, 0.99,  //
                                   3e-3, options.beta1, 0.95, 1e-6, options.weight_decay, 0.5}),
        multiplier_(std::vector<float>{options.multiplier}),
        found_inf_(std::vector<float>{options.found_inf}),
        seed_(std::vector<int64_t>{0x123456789abcdef, 3}),
        steps_(counts(tensors.size())),
        numbers_(tensors.size()) {}

  /// Launches with a table that has the maps where they are asked for; the update is launch(problem).
  template <class Update>
  void run_there(const Update& launch, const DynamicMap* maps = nullptr,
                 const std::vector<BlockScales>& scales = {}) {
    std::vector<void*> grads;
    std::vector<cuda::AdamwEntry> entries;
    const std::vector<AdamwTensor> own = tensors_.there();
    for (size_t t = 0; t < own.size(); ++t) {
      grads.push_back(own[t].data[kGrad]);
      entries.push_back(cuda::entry_of(own[t], tensors_.walks()[t], group(t), steps_.data() + t,
                                       scales.empty() ? BlockScales{} : scales[t]));
    }
    const cuda::TableImage image(grads, entries, tensors_.layouts(), maps);
    table_ = std::make_unique<Array<unsigned char>>(image.bytes().size());
    check(cuda::write_table({}, image.bytes(), table_->data(), nullptr));
    const cuda::AdamwTable table = image.at(table_->data());
    check(cuda::launch_count({table,
                              numbers_.data(),
                              hyper_.data(),
                              {6, 1},
                              multiplier_.data(),
                              found_inf_.data(),
                              options_.decoupled,
                              options_.maximize},
                             nullptr));
    check(launch(cuda::AdamwUpdateProblem{table, numbers_.data(), found_inf_.data(),
                                          options_.seeded ? seed_.data() : nullptr, 1,
                                          options_.zero_grads}));
  }

  /// The CPU's problem; update(problem).
  template <class Update>
  void run_here(const Update& update) {
    if (options_.found_inf > 0) return;
    scalars_.clear();
    for (size_t t = 0; t < tensors_.size(); ++t) {
      const double* const row = hyper_.data() + 6 * group(t);
      scalars_.push_back(step_scalars({row[0], row[1], row[2], row[3], row[4], row[5]},
                                      static_cast<int64_t>(t % 4) + 1, options_.multiplier,
                                      options_.decoupled, options_.maximize));
    }
    const std::vector<AdamwTensor> own = tensors_.here();
    AdamwProblem p{tensors_.walks().data(), tensors_.layouts().data(),        own.data(),
                   scalars_.data(),         static_cast<int64_t>(own.size()), {},
                   options_.zero_grads};
    if (options_.seeded) p.seed = rounding_seed(seed_[0], seed_[1]);
    update(p);
  }

  void compare(const char* where) const {
    tensors_.compare(where);
    for (size_t t = 0; t < tensors_.size(); ++t) {
      const float done = static_cast<float>(t % 4) + (options_.found_inf > 0 ? 0.f : 1.f);
      expect(steps_[t] == done, "the count of steps", where);
    }
  }

 private:
  static std::vector<float> counts(size_t n) {
    std::vector<float> steps;
    for (size_t t = 0; t < n; ++t) steps.push_back(static_cast<float>(t % 4));
    return steps;
  }
  static int32_t group(size_t t) { return static_cast<int32_t>(t % 2); }
  static void check(cux::Error error) { expect(!error, error ? error : "", "a launch"); }

  Tensors& tensors_;
  StepOptions options_;
  Array<double> hyper_;
  Array<float> multiplier_, found_inf_;
  Array<int64_t> seed_;
  Array<float> steps_;
  Array<StepNumbers<float>> numbers_;
  std::unique_ptr<Array<unsigned char>> table_;
  std::vector<AdamwScalars> scalars_;
};

}  // namespace fulgurite
