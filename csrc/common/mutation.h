// Operators that write their arguments: the ADInplaceOrView kernel for any schema.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <vector>

namespace fulgurite {

/// Runs the operator, then bumps the version of every tensor that its schema says it may write, alone or in a list.
/// (torch's own fallback for this key serves only operators that return the tensor they write.)
inline void bump_versions(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const size_t first = stack->size() - arguments.size();
  std::vector<c10::IValue> written;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].alias_info() && arguments[i].alias_info()->isWrite()) written.push_back((*stack)[first + i]);
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  const auto bump = [](const at::Tensor& tensor) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  };
  for (const c10::IValue& value : written) {
    if (value.isTensor()) bump(value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorList()) bump(tensor);
  }
}

inline torch::CppFunction bumps_versions() { return torch::CppFunction::makeFromBoxedFunction<&bump_versions>(); }

}  // namespace fulgurite
