// A backward that nobody records calls its operator below Autograd: the fallback that stands there, to refuse a second
// gradient, costs as much as a small kernel.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>

#include <optional>

namespace fulgurite {

class BelowAutogradUnlessRecorded {
 public:
  BelowAutogradUnlessRecorded() {
    if (!at::GradMode::is_enabled()) below_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_;
};

}  // namespace fulgurite
