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
  const std::string scan =
      "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, *, Tensor? D=None, Tensor? z=None, "
      "Tensor? delta_bias=None, bool delta_softplus=False, Tensor? initial_state=None, Tensor? "
      "cu_seqlens=None";
  fulgurite::define(m, "selective_scan(" + scan + ") -> (Tensor out, Tensor state)");
  fulgurite::define(
      m, "_selective_scan_forward(" + scan + ") -> (Tensor out, Tensor state, Tensor kept)");
  fulgurite::define(
      m, "_selective_scan_backward(Tensor? grad_out, Tensor? grad_state, Tensor kept, " + scan +
             ", bool[9] output_mask) -> (Tensor grad_u, Tensor grad_delta, Tensor grad_A, Tensor "
             "grad_B, Tensor grad_C, Tensor grad_D, Tensor grad_z, Tensor grad_delta_bias, Tensor "
             "grad_initial_state)");
}

namespace fulgurite {

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight,
                                         const CausalConv1dOptions& o) {
  return call(CausalConv1dArgs{x, weight, o.bias, o.activation, o.initial_state, o.cu_seqlens});
}

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                          const Tensor& B, const Tensor& C,
                                          const SelectiveScanOptions& o) {
  return call(SelectiveScanArgs{u, delta, A, B, C, o.D, o.z, o.delta_bias, o.delta_softplus,
                                o.initial_state, o.cu_seqlens});
}

}  // namespace fulgurite
