#include "optim/cpu/call.h"

namespace fulgurite {
namespace {

AdamwHyper hyper_row(const Tensor& hyper, int64_t group) {
  const double* const row = hyper.const_data_ptr<double>() + group * hyper.stride(0);
  const auto value = [&](int k) { return row[k * hyper.stride(1)]; };
  return {value(0), value(1), value(2), value(3), value(4), value(5)};
}

RoundingSeed seed_of(const Tensor& seed) {
  const auto* const words = seed.const_data_ptr<int64_t>();
  return rounding_seed(words[0], words[seed.stride(0)]);
}

}  // namespace

bool is_skipped(const StepArgs& a) {
  return a.found_inf && *a.found_inf->const_data_ptr<float>() > 0;
}

/// Neighbours of one group that are at the same step share their numbers.
void AdamwCall::number() {
  const double multiplier = a_.grad_multiplier ? *a_.grad_multiplier->const_data_ptr<float>() : 1.0;
  std::vector<AdamwTensor>& tensors = all_.tensors();
  float last_step = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const float step = *all_.steps()[i] + 1;
    if (i == 0 || a_.groups[i] != a_.groups[i - 1] || step != last_step)
      scalars_.push_back(step_scalars(hyper_row(a_.hyper, a_.groups[i]), static_cast<int64_t>(step),
                                      multiplier, a_.decoupled, a_.maximize));
    tensors[i].scalars = static_cast<int32_t>(scalars_.size() - 1);
    last_step = step;
  }
}

Dtype AdamwCall::dtype() const {
  for (const AdamwTensor& tensor : all_.tensors())
    for (const Dtype dtype : tensor.dtype)
      if (dtype == Dtype::kBFloat16) return dtype;
  return Dtype::kFloat32;
}

AdamwProblem AdamwCall::problem(bool zero_grads) const {
  AdamwProblem p{};
  p.walks = all_.list().walks();
  p.layouts = all_.list().layouts();
  p.tensors = all_.tensors().data();
  p.scalars = scalars_.data();
  p.count = all_.list().count();
  if (a_.seed) p.seed = seed_of(*a_.seed);
  p.zero_grads = zero_grads;
  return p;
}

}  // namespace fulgurite
