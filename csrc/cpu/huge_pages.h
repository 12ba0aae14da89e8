// Huge pages under large results that are about to be written for the first time: a fault for each 4 KiB costs about
// 2 µs, more than the arithmetic of small batches.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgurite {

/// `fresh`, a contiguous CPU tensor, after asking for huge pages under it where it is large; it is written soon and all of it.
at::Tensor on_huge_pages(at::Tensor fresh);

}  // namespace fulgurite
