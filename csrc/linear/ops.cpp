// Schemas of the family and its public C++ functions.
#include "common/define.h"
#include "fulgurite/linear.h"
#include "linear/args.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  fulgurite::define(
      m,
      "causal_conv1d(Tensor x, Tensor weight, *, Tensor? bias=None, str activation=\"none\", "
      "Tensor? initial_state=None, Tensor? cu_seqlens=None) -> (Tensor out, Tensor state)");
  fulgurite::define(
      m,
      "_causal_conv1d_backward(Tensor? grad_out, Tensor? grad_state, Tensor x, Tensor weight, *, "
      "Tensor? bias=None, str activation=\"none\", Tensor? initial_state=None, Tensor? "
      "cu_seqlens=None, bool[4] output_mask) -> (Tensor grad_x, Tensor grad_weight, Tensor "
      "grad_bias, Tensor grad_initial_state)");
}

namespace fulgurite {

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight,
                                         const CausalConv1dOptions& o) {
  return call(CausalConv1dArgs{x, weight, o.bias, o.activation, o.initial_state, o.cu_seqlens});
}

}  // namespace fulgurite
