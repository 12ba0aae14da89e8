// Results without values yet: contiguous, on CPU, CUDA and Meta alike.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

namespace fulgurite {

inline at::Tensor fresh_like(const at::Tensor& like) {
  return at::empty_symint(like.sym_sizes(), like.options());
}

/// A gradient in the shape and dtype of its input; 0 elements of `unwanted`'s dtype where nobody asks for it.
inline at::Tensor fresh_gradient(bool wanted, const std::optional<at::Tensor>& input,
                                 const at::Tensor& unwanted) {
  return wanted ? fresh_like(*input) : at::empty({0}, unwanted.options());
}

inline at::Tensor fresh_gradient(bool wanted, const at::Tensor& input) {
  return fresh_gradient(wanted, input, input);
}

}  // namespace fulgurite
