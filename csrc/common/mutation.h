// Operators that write their arguments: Autograd and ADInplaceOrView kernels for any schema.
// torch's own fallbacks for these keys bump versions only where the written tensor is also
// returned.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include <vector>

namespace fulgurite {

/// Calls visit(tensor) for a tensor or a list of them.
template <class Visit>
void visit_tensors(const c10::IValue& value, const Visit& visit) {
  if (value.isTensor()) visit(value.toTensor());
  if (value.isTensorList())
    for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
}

/// The arguments that the schema says may be written. They outlive the call, which consumes the
/// stack.
inline std::vector<c10::IValue> written_arguments(const c10::OperatorHandle& op,
                                                  const torch::jit::Stack& stack) {
  const auto& arguments = op.schema().arguments();
  const size_t first = stack.size() - arguments.size();
  std::vector<c10::IValue> written;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].alias_info() && arguments[i].alias_info()->isWrite())
      written.push_back(stack[first + i]);
  return written;
}

/// Bumps the version of every tensor that was or may have been written.
inline void bump_versions(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                          torch::jit::Stack* stack) {
  const std::vector<c10::IValue> written = written_arguments(op, *stack);
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const c10::IValue& value : written)
    visit_tensors(value, [](const at::Tensor& tensor) {
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
    });
}

/// While gradients are recorded, a written leaf that requires one is torch's error, and any other
/// is refused: there is no backward.
inline void refuse_gradients(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                             torch::jit::Stack* stack) {
  if (at::GradMode::is_enabled()) {
    bool requires_grad = false;
    for (const c10::IValue& value : torch::jit::last(*stack, op.schema().arguments().size()))
      visit_tensors(value, [&](const at::Tensor& tensor) {
        requires_grad |= tensor.defined() && tensor.requires_grad();
      });
    for (const c10::IValue& value : written_arguments(op, *stack))
      visit_tensors(value, [&](const at::Tensor& tensor) {
        torch::autograd::check_inplace(tensor, requires_grad);
      });
    TORCH_CHECK_NOT_IMPLEMENTED(!requires_grad, op.schema().operator_name().name,
                                ": has no gradient; call it under torch.no_grad()");
  }
  at::AutoDispatchBelowAutograd below;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

/// What to register under ADInplaceOrView, and under Autograd.
inline torch::CppFunction bumps_versions() {
  return torch::CppFunction::makeFromBoxedFunction<&bump_versions>();
}
inline torch::CppFunction refuses_gradients() {
  return torch::CppFunction::makeFromBoxedFunction<&refuse_gradients>();
}

}  // namespace fulgurite
