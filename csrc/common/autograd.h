// Pieces of autograd functions.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <optional>

namespace fulgurite {

/// A saved tensor or an incoming gradient, which is undefined where there is none.
inline std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// A result as an autograd function saves it: without the node, which would hold it, in turn held by it. torch saves a result so that
/// no such circle stays, unless a hook on saved tensors throws half-way, as early stopping under checkpoint does.
inline at::Tensor saved_output(const at::Tensor& result) { return result.tensor_data(); }

/// A backward that nobody records calls its operator below Autograd: the fallback that stands there, to refuse a second
/// gradient, costs as much as a small kernel.
class BelowAutogradUnlessRecorded {
 public:
  BelowAutogradUnlessRecorded() {
    if (!at::GradMode::is_enabled()) below_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_;
};

}  // namespace fulgurite
