// alibi_slopes have no gradient: asking for one raises.
#pragma once

#include "common/check.h"

#include <ATen/core/grad_mode.h>

namespace fulgurite {

inline void check_slopes_need_no_gradient(const char* op, const std::optional<at::Tensor>& slopes) {
  FULGURITE_CHECK_SERVED(!slopes || !slopes->requires_grad() || !at::GradMode::is_enabled(),
                         "the gradient of alibi_slopes is not supported; pass them detached");
}

}  // namespace fulgurite
