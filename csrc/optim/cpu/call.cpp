#include "optim/cpu/call.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "common/dtype.h"
#include "optim/check_step.h"

namespace fulgurite {
namespace {

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

bool is_cpu_strided(const Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided;
}

bool betas_below_1(const Tensor& hyper) {
  const double* const row = hyper.const_data_ptr<double>();
  for (int64_t group = 0; group < hyper.size(0); ++group)
    for (const int k : {1, 2})
      if (!(row[6 * group + k] >= 0 && row[6 * group + k] < 1)) return false;
  return true;
}

/// No two parameters begin at the same address.
bool all_different(const std::vector<AdamwTensor>& tensors) {
  size_t slots = 64;
  while (slots < 2 * tensors.size()) slots *= 2;
  std::vector<const void*> seen(slots);  // open addressing, at most half full
  for (const AdamwTensor& tensor : tensors) {
    const void* const data = tensor.data[kParam];
    if (!data) continue;
    size_t at = (reinterpret_cast<uintptr_t>(data) >> 4) * 0x9E3779B97F4A7C15u >> 20;
    for (;; ++at) {
      const void*& slot = seen[at & (slots - 1)];
      if (slot == data) return false;
      if (slot) continue;
      slot = data;
      break;
    }
  }
  return true;
}

}  // namespace

bool is_skipped(const StepArgs& a) {
  return a.found_inf && *a.found_inf->const_data_ptr<float>() > 0;
}

void AdamwCall::reset() {
  const size_t n = a_.params.size();
  list_.reserve(n);
  tensors_.resize(n);
  numels_.resize(n);
  steps_.resize(n);
}

/// Lists are long enough, and what is there once is as it should be.
bool AdamwCall::plain_scalars() const {
  const size_t n = a_.params.size();
  const auto is_plain = [](const OptionalTensor& t, at::ScalarType dtype, int64_t numel) {
    return !t || (t->scalar_type() == dtype && t->is_contiguous() && t->numel() == numel &&
                  t->device().is_cpu());
  };
  const bool keys = !a_.keys || (a_.seed && a_.keys->size() == n);
  return a_.grads.size() == n && a_.steps.size() == n && a_.groups.size() == n &&
         (a_.masters.empty() || a_.masters.size() == n) && keys &&
         a_.hyper.scalar_type() == at::kDouble && a_.hyper.dim() == 2 && a_.hyper.size(1) == 6 &&
         a_.hyper.is_contiguous() && is_plain(a_.grad_multiplier, at::kFloat, 1) &&
         is_plain(a_.found_inf, at::kFloat, 1) && is_plain(a_.seed, at::kLong, 2) &&
         (!a_.seed || a_.seed->dim() == 1) && betas_below_1(a_.hyper);
}

void AdamwCall::complete(size_t i, Operands& operands) const {
  operands[kParam] = &a_.params[i];
  operands[kGrad] = &a_.grads[i];
  operands[kMaster] = entry_or_null(a_.masters, i);
}

bool AdamwCall::fill_plain(size_t i, const Own& own) {
  Operands operands = own.operands;
  complete(i, operands);
  const Tensor &param = a_.params[i], &step = a_.steps[i];
  const at::ScalarType dtype = param.scalar_type();
  const Tensor* const master = operands[kMaster];
  if (!own.served || !is_served_float(dtype) || !serves_grad(dtype, a_.grads[i].scalar_type()) ||
      (master && !serves_master(dtype, master->scalar_type())) || !is_cpu_strided(param))
    return false;
  const bool contiguous = param.is_contiguous();
  if (!contiguous && (a_.seed || !param.is_non_overlapping_and_dense())) return false;
  const auto lies_alike = [&](const Tensor& operand) {
    return is_cpu_strided(operand) && operand.sizes() == param.sizes() &&
           (contiguous ? operand.is_contiguous() : operand.strides() == param.strides());
  };
  for (int k = kGrad; k < kAdamwOperands; ++k)
    if (operands[k] && !lies_alike(*operands[k])) return false;
  if (step.scalar_type() != at::kFloat || step.numel() != 1 || !is_cpu_strided(step) ||
      a_.groups[i] < 0 || a_.groups[i] >= a_.hyper.size(0) ||
      (a_.keys && !((*a_.keys)[i] >= 0 && (*a_.keys)[i] < int64_t{1} << 32)))
    return false;
  describe(i, operands);
  return is_count(*steps_[i]);
}

bool AdamwCall::finish_plain() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].scalars = scalars_of(i, *steps_[i] + 1);
    list_.add_dense(numels_[i]);
  }
  return all_different(tensors_);
}

void AdamwCall::add(size_t i, const Own& own) {
  Operands operands = own.operands;
  complete(i, operands);
  describe(i, operands);
  if (tensors_[i].stochastic) operands[kIndex] = row_major(a_.params[i]);
  tensors_[i].scalars = scalars_of(i, *steps_[i] + 1);
  list_.add(operands);
}

/// All of the descriptor but the place of its scalars.
void AdamwCall::describe(size_t i, const Operands& operands) {
  AdamwTensor& tensor = tensors_[i];
  const Tensor& param = *operands[kParam];
  for (int k = 0; k < kAdamwOperands; ++k) set_operand(tensor, k, operands[k]);
  tensor.split = operands[kMaster] && operands[kMaster]->scalar_type() == at::kShort;
  tensor.stochastic = a_.seed && is_half(param.scalar_type()) && !operands[kMaster];
  tensor.key = static_cast<uint32_t>(a_.keys ? (*a_.keys)[i] : static_cast<int64_t>(i));
  numels_[i] = param.numel();
  steps_[i] = a_.steps[i].mutable_data_ptr<float>();
}

/// Where the numbers of tensor i stand: neighbours of one group that are at the same step share them.
int32_t AdamwCall::scalars_of(size_t i, float step) {
  if (i == 0 || a_.groups[i] != a_.groups[i - 1] || step != *steps_[i - 1] + 1) {
    const double multiplier =
        a_.grad_multiplier ? *a_.grad_multiplier->const_data_ptr<float>() : 1.0;
    scalars_.push_back(step_scalars(a_, a_.groups[i], step, multiplier));
  }
  return static_cast<int32_t>(scalars_.size() - 1);
}

/// A tensor of the parameter's shape whose strides are the row-major ones.
const Tensor* AdamwCall::row_major(const Tensor& param) {
  if (param.is_contiguous()) return &param;
  return &row_major_.emplace_back(at::empty(param.sizes(), param.options().device(at::kMeta)));
}

Dtype AdamwCall::dtype() const {
  for (const AdamwTensor& tensor : tensors_)
    for (const Dtype dtype : tensor.dtype)
      if (dtype == Dtype::kBFloat16) return dtype;
  return Dtype::kFloat32;
}

AdamwParams AdamwCall::params(bool zero_grads) const {
  AdamwParams p{};
  p.walks = list_.walks();
  p.layouts = list_.layouts();
  p.tensors = tensors_.data();
  p.scalars = scalars_.data();
  p.count = list_.count();
  if (a_.seed) p.seed = rounding_seed(*a_.seed);
  p.zero_grads = zero_grads;
  return p;
}

}  // namespace fulgurite
