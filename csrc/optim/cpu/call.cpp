#include "optim/cpu/call.h"

#include <ATen/ops/empty.h>

#include <atomic>

#include "common/dtype.h"

namespace fulgurite {
namespace {

AdamwHyper hyper_row(const Tensor& hyper, int64_t group) {
  const double* const row = hyper.const_data_ptr<double>() + group * hyper.stride(0);
  const auto value = [&](int k) { return row[k * hyper.stride(1)]; };
  return {value(0), value(1), value(2), value(3), value(4), value(5)};
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

AdamwCall::AdamwCall(const StepArgs& a, c10::ArrayRef<OperandList> lists, int64_t grain)
    : a_(a), lists_(lists), list_(WalkOrder::kMemory, grain) {
  for (const OperandList& list : lists)
    if (!list.list.empty()) given_.push_back(list);
}

void AdamwCall::reset() {
  const size_t n = a_.params.size();
  list_.reserve(n);
  tensors_.resize(n);
  numels_.resize(n);
  steps_.resize(n);
}

bool AdamwCall::lengths_hold() const {
  const size_t n = a_.params.size();
  for (const OperandList& list : lists_)
    if (!list.is_length(n)) return false;
  return a_.steps.size() == n && a_.groups.size() == n &&
         (!a_.keys || (a_.seed && a_.keys->size() == n));
}

AdamwCall::Operands AdamwCall::operands(size_t i) const {
  Operands operands{};
  operands[kParam] = &a_.params[i];
  for (const OperandList& list : given_)
    if (list.used) operands[list.operand] = list.entry(i);
  return operands;
}

bool AdamwCall::describe_plain(size_t i, int64_t groups) {
  const Tensor &param = a_.params[i], &step = a_.steps[i];
  const at::ScalarType dtype = param.scalar_type();
  if (!is_served_float(dtype) || !is_cpu_strided(param)) return false;
  const bool contiguous = param.is_contiguous();
  if (!contiguous && (a_.seed || !param.is_non_overlapping_and_dense())) return false;
  const auto lies_alike = [&](const Tensor& operand) {
    return is_cpu_strided(operand) && operand.sizes() == param.sizes() &&
           (contiguous ? operand.is_contiguous() : operand.strides() == param.strides());
  };
  Operands own{};
  own[kParam] = &param;
  for (const OperandList& list : given_)
    if (const Tensor* const entry = list.entry(i)) {
      if (!list.serves(dtype, entry->scalar_type()) || !lies_alike(*entry)) return false;
      if (list.used) own[list.operand] = entry;
    }
  if (step.scalar_type() != at::kFloat || step.numel() != 1 || !is_cpu_strided(step) ||
      !is_group(a_.groups[i], groups) || (a_.keys && !is_key((*a_.keys)[i])))
    return false;
  describe(i, own);
  return is_count(*steps_[i]);
}

bool AdamwCall::add_plain() {
  if (!lengths_hold() || a_.hyper.dim() != 2 || !a_.hyper.device().is_cpu()) return false;
  reset();
  const int64_t groups = a_.hyper.size(0);
  std::atomic<bool> plain{true};
  at::parallel_for(0, static_cast<int64_t>(a_.params.size()), kPerTask,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i)
                       if (!describe_plain(static_cast<size_t>(i), groups))
                         return plain.store(false, std::memory_order_relaxed);
                   });
  return plain && all_different(tensors_);
}

void AdamwCall::number_plain() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].scalars = scalars_of(i, *steps_[i] + 1);
    list_.add_dense(numels_[i]);
  }
}

void AdamwCall::add_checked() {
  reset();
  for (size_t i = 0; i < a_.params.size(); ++i) {
    Operands own = operands(i);
    describe(i, own);
    if (tensors_[i].stochastic) own[kIndex] = row_major(a_.params[i]);
    tensors_[i].scalars = scalars_of(i, *steps_[i] + 1);
    list_.add(own);
  }
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
    scalars_.push_back(step_scalars(hyper_row(a_.hyper, a_.groups[i]), static_cast<int64_t>(step),
                                    multiplier, a_.decoupled, a_.maximize));
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

AdamwProblem AdamwCall::problem(bool zero_grads) const {
  AdamwProblem p{};
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
