#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fulgurite {

/// Blocks of d that cover n.
FULGURITE_HOST_DEVICE constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

}  // namespace fulgurite
