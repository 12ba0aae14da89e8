// Pieces of autograd functions.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace fulgurite {

/// A saved tensor or an incoming gradient, which is undefined where there is none.
inline std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// A result as an autograd function saves it: without the node, which would hold it, in turn held by it. torch saves a result so that
/// no such circle stays, unless a hook on saved tensors throws half-way, as early stopping under checkpoint does.
inline at::Tensor saved_output(const at::Tensor& result) { return result.tensor_data(); }

/// A backward that nobody records calls its operator below Autograd: what stands there, to differentiate it again or to refuse,
/// costs as much as a small kernel. A gradient that has a tangent must come there.
class BelowAutogradUnlessRecorded {
 public:
  explicit BelowAutogradUnlessRecorded(const std::vector<at::Tensor>& grads) {
    const bool moves = std::any_of(grads.begin(), grads.end(), [](const at::Tensor& grad) {
      return grad.defined() && grad._fw_grad(/*level=*/0).defined();
    });
    if (!at::GradMode::is_enabled() && !moves) below_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_;
};

}  // namespace fulgurite
