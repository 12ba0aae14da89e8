#include "optim/step_tensors.h"

#include <ATen/ops/empty.h>

#include "common/dtype.h"

namespace fulgurite {
namespace {

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

StepTensors::StepTensors(const StepArgs& a, c10::ArrayRef<OperandList> lists, int64_t grain,
                         c10::DeviceType device)
    : a_(a), lists_(lists), device_(device), list_(WalkOrder::kMemory, grain) {
  for (const OperandList& list : lists)
    if (!list.list.empty()) given_.push_back(list);
}

void StepTensors::reset() {
  const size_t n = a_.params.size();
  list_.reserve(n);
  tensors_.resize(n);
  numels_.resize(n);
  steps_.resize(n);
}

bool StepTensors::lengths_hold() const {
  const size_t n = a_.params.size();
  for (const OperandList& list : lists_)
    if (!list.is_length(n)) return false;
  return a_.steps.size() == n && a_.groups.size() == n &&
         (!a_.keys || (a_.seed && a_.keys->size() == n));
}

StepTensors::Operands StepTensors::operands(size_t i) const {
  Operands operands{};
  operands[kParam] = &a_.params[i];
  for (const OperandList& list : given_)
    if (list.used) operands[list.operand] = list.entry(i);
  return operands;
}

bool StepTensors::describe_plain(size_t i, int64_t groups) {
  const Tensor &param = a_.params[i], &step = a_.steps[i];
  const at::ScalarType dtype = param.scalar_type();
  if (!is_served_float(dtype) || !is_strided(param)) return false;
  const bool contiguous = param.is_contiguous();
  if (!contiguous && (a_.seed || !param.is_non_overlapping_and_dense())) return false;
  const auto lies_alike = [&](const Tensor& operand) {
    return is_strided(operand) && operand.sizes() == param.sizes() &&
           (contiguous ? operand.is_contiguous() : operand.strides() == param.strides());
  };
  Operands own{};
  own[kParam] = &param;
  for (const OperandList& list : given_)
    if (const Tensor* const entry = list.entry(i)) {
      if (!list.serves(dtype, entry->scalar_type()) || !lies_alike(*entry)) return false;
      if (list.used) own[list.operand] = entry;
    }
  if (step.scalar_type() != at::kFloat || step.numel() != 1 || !is_strided(step) ||
      !is_group(a_.groups[i], groups) || (a_.keys && !is_key((*a_.keys)[i])))
    return false;
  describe(i, own);
  return true;
}

/// No two parameters begin at the same address.
bool StepTensors::all_different() const {
  size_t slots = 64;
  while (slots < 2 * tensors_.size()) slots *= 2;
  std::vector<const void*> seen(slots);  // open addressing, at most half full
  for (const AdamwTensor& tensor : tensors_) {
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

void StepTensors::place_plain() {
  for (const int64_t numel : numels_) list_.add_dense(numel);
}

void StepTensors::add_checked() {
  reset();
  for (size_t i = 0; i < a_.params.size(); ++i) {
    Operands own = operands(i);
    describe(i, own);
    if (tensors_[i].stochastic) own[kIndex] = row_major(a_.params[i]);
    list_.add(own);
  }
}

/// All of the descriptor but the place of its scalars.
void StepTensors::describe(size_t i, const Operands& operands) {
  AdamwTensor& tensor = tensors_[i];
  const Tensor& param = *operands[kParam];
  for (int k = 0; k < kAdamwOperands; ++k) set_operand(tensor, k, operands[k]);
  tensor.split = operands[kMaster] && operands[kMaster]->scalar_type() == at::kShort;
  tensor.stochastic = a_.seed && is_half(param.scalar_type()) && !operands[kMaster];
  tensor.key = static_cast<uint32_t>(a_.keys ? (*a_.keys)[i] : static_cast<int64_t>(i));
  numels_[i] = param.numel();
  steps_[i] = a_.steps[i].mutable_data_ptr<float>();
}

/// A tensor of the parameter's shape whose strides are the row-major ones.
const Tensor* StepTensors::row_major(const Tensor& param) {
  if (param.is_contiguous()) return &param;
  return &row_major_.emplace_back(at::empty(param.sizes(), param.options().device(at::kMeta)));
}

}  // namespace fulgurite
