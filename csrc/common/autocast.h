// Autocast casts floating tensors (never float64) and calls the operator below the autocast keys.
#pragma once

#include <ATen/autocast_mode.h>

#include <optional>

namespace fulgurite {

/// Casts for one device, with autocast itself switched off while it lives.
class AutocastTo {
 public:
  /// To the autocast dtype of the device.
  explicit AutocastTo(c10::DeviceType device)
      : AutocastTo(device, at::autocast::get_lower_precision_fp_from_device_type(device)) {}
  AutocastTo(c10::DeviceType device, at::ScalarType dtype)
      : guard_(c10::autocast_dispatch_keyset), device_(device), dtype_(dtype) {}

  at::Tensor operator()(const at::Tensor& tensor) const {
    if (tensor.is_mkldnn()) return tensor;  // cannot be cast; the operator says what it expects
    return at::autocast::cached_cast(dtype_, tensor, device_);
  }
  std::optional<at::Tensor> operator()(const std::optional<at::Tensor>& tensor) const {
    return tensor ? std::optional((*this)(*tensor)) : std::nullopt;
  }

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_;
  c10::DeviceType device_;
  at::ScalarType dtype_;
};

}  // namespace fulgurite
