#include "optim/cpu/call.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "common/dtype.h"

namespace fulgurite {
namespace {

float next_step(const Tensor& step) { return *step.const_data_ptr<float>() + 1; }

/// x^n by squaring: the same bits everywhere, which the C library's pow does not promise.
double power(double x, int64_t n) {
  double result = 1;
  for (; n > 0; n >>= 1, x *= x)
    if (n & 1) result *= x;
  return result;
}

AdamwScalars step_scalars(const StepArgs& a, int64_t group, float step, double multiplier) {
  const double* const row = a.hyper.const_data_ptr<double>() + group * a.hyper.stride(0);
  const auto value = [&](int k) { return row[k * a.hyper.stride(1)]; };
  const double lr = value(0), beta1 = value(1), beta2 = value(2), weight_decay = value(4);
  const int64_t t = static_cast<int64_t>(step);
  AdamwScalars s;
  s.grad_factor = a.maximize ? -multiplier : multiplier;
  s.decay = a.decoupled ? 1 - lr * weight_decay : 1;
  s.weight_decay = a.decoupled ? 0 : weight_decay;
  s.from_exp_avg = 1 - beta1 < 0.5;
  s.exp_avg_weight = s.from_exp_avg ? 1 - beta1 : -beta1;
  s.exp_avg_sq_weight = 1 - beta2;
  s.beta2 = beta2;
  s.step_size = lr / (1 - power(beta1, t));
  s.correction = std::sqrt(1 - power(beta2, t));
  s.eps = value(3);
  s.ema_weight = 1 - value(5);
  return s;
}

RoundingSeed rounding_seed(const Tensor& seed) {
  const auto* const words = seed.const_data_ptr<int64_t>();
  const auto key = static_cast<uint64_t>(words[0]);
  return {{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
          static_cast<uint32_t>(words[seed.stride(0)])};
}

void set_operand(AdamwTensor& tensor, int k, const Tensor* operand) {
  tensor.data[k] = nullptr;
  tensor.dtype[k] = Dtype::kFloat32;
  tensor.bytes[k] = 0;
  if (!operand || k == kIndex) return;
  // The gradient is written only by zero_grads; taking it mutably would make a copy-on-write tensor
  // copy.
  tensor.data[k] =
      k == kGrad ? const_cast<void*>(operand->const_data_ptr()) : operand->mutable_data_ptr();
  tensor.bytes[k] = static_cast<uint8_t>(operand->element_size());
  if (operand->is_floating_point()) tensor.dtype[k] = kernel_dtype(operand->scalar_type());
}

}  // namespace

bool is_skipped(const StepArgs& a) {
  return a.found_inf && *a.found_inf->const_data_ptr<float>() > 0;
}

void advance(TensorList steps) {
  for (const Tensor& step : steps) *step.mutable_data_ptr<float>() = next_step(step);
}

AdamwCall::AdamwCall(const StepArgs& a, int64_t grain)
    : a_(a),
      multiplier_(a.grad_multiplier ? *a.grad_multiplier->const_data_ptr<float>() : 1.0),
      list_(WalkOrder::kMemory, grain) {
  if (a.seed) seed_ = rounding_seed(*a.seed);
  list_.reserve(a.params.size());
  tensors_.reserve(a.params.size());
}

void AdamwCall::add(Operands operands) {
  const size_t i = tensors_.size();
  const Tensor& param = a_.params[i];
  operands[kParam] = &param;
  operands[kGrad] = &a_.grads[i];
  operands[kMaster] = entry_or_null(a_.masters, i);
  AdamwTensor tensor;
  tensor.split = operands[kMaster] && operands[kMaster]->scalar_type() == at::kShort;
  tensor.stochastic = a_.seed && param.element_size() == 2 && !operands[kMaster];
  tensor.key = static_cast<uint32_t>(a_.keys ? (*a_.keys)[i] : static_cast<int64_t>(i));
  if (tensor.stochastic) operands[kIndex] = row_major(param);
  for (int k = 0; k < kAdamwOperands; ++k) set_operand(tensor, k, operands[k]);
  tensor.scalars = scalars_of(i);
  tensors_.push_back(tensor);
  list_.add(operands);
}

/// Where the numbers of tensor i stand: neighbours of one group that are at the same step share them.
int32_t AdamwCall::scalars_of(size_t i) {
  const float step = next_step(a_.steps[i]);
  if (i == 0 || a_.groups[i] != a_.groups[i - 1] || step != next_step(a_.steps[i - 1]))
    scalars_.push_back(step_scalars(a_, a_.groups[i], step, multiplier_));
  return static_cast<int32_t>(scalars_.size() - 1);
}

/// A tensor of the parameter's shape whose strides are the row-major ones.
const Tensor* AdamwCall::row_major(const Tensor& param) {
  if (param.is_contiguous()) return &param;
  return &row_major_.emplace_back(at::empty(param.sizes(), param.options().device(at::kMeta)));
}

AdamwParams AdamwCall::params(bool zero_grads) const {
  return {list_.walks(), list_.layouts(), tensors_.data(), scalars_.data(),
          list_.count(), seed_,           zero_grads};
}

}  // namespace fulgurite
