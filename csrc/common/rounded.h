// float64 operations with the same bits on every device: no product that a compiler fuses with a sum, no approximate root.
#pragma once

#include "common/host_device.h"

namespace fulgurite {

/// x·y, rounded.
FULGURITE_HOST_DEVICE double rounded_product(double x, double y) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(x, y);
#else
  double product = x * y;
  __asm__("" : "+m"(product));  // what follows cannot be fused with it
  return product;
#endif
}

FULGURITE_HOST_DEVICE double rounded_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

}  // namespace fulgurite
