// Linear attention: schemas, the public C++ function, Meta, gradients and autocast. Its checks stand in
// linear_attention_check.cpp.
#include "linear/linear_attention.h"

#include "common/autocast.h"
#include "common/check.h"
#include "common/define.h"
#include "common/fresh.h"
#include "common/saved_arguments.h"
#include "fulgurite/linear.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- Meta

LinearAttentionArgs::Result fresh_linear_attention(const LinearAttentionArgs& args,
                                                   const LinearAttentionShape& s) {
  const auto wide = accumulate_options(args.query);
  return {at::empty_symint(s.out(), args.query.options()), at::empty_symint(s.state(), wide),
          at::empty_symint(s.norm(), wide)};
}

LinearAttentionArgs::Result linear_attention_meta(const LinearAttentionArgs& args) {
  return fresh_linear_attention(args, check_linear_attention(args));
}

LinearAttentionForwardArgs::Result linear_attention_forward_meta(
    const LinearAttentionForwardArgs& args) {
  const LinearAttentionShape s = check_linear_attention(args);
  const auto wide = accumulate_options(args.query);
  return std::tuple_cat(fresh_linear_attention(args, s),
                        std::tuple{at::empty_symint(s.kept(args), wide),
                                   at::empty_symint(s.denominators(args), wide)});
}

LinearAttentionBackwardArgs::Result linear_attention_backward_meta(
    const LinearAttentionBackwardArgs& args) {
  check_linear_attention_backward(args);
  const LinearAttentionArgs& f = args.forward;
  const auto gradient = [&](LinearAttentionInput input, const OptionalTensor& like) {
    return fresh_gradient(args.output_mask[input], like, f.query);
  };
  return {gradient(kLinearQuery, f.query),
          gradient(kLinearKey, f.key),
          gradient(kLinearValue, f.value),
          gradient(kLinearLogDecay, f.log_decay),
          gradient(kLinearBonus, f.bonus),
          gradient(kLinearInitialState, f.initial_state),
          gradient(kLinearInitialNorm, f.initial_norm)};
}

// ---- gradients

struct LinearAttentionFunction : torch::autograd::Function<LinearAttentionFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key,
                               const Tensor& value, const OptionalTensor& log_decay,
                               const OptionalTensor& bonus, const OptionalTensor& initial_state,
                               const OptionalTensor& initial_norm,
                               const LinearAttentionArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, state, norm, kept, denominators] = call(LinearAttentionForwardArgs{args});
    variable_list saved{args.normalize ? saved_output(out) : Tensor(), kept, denominators};
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {out, state, norm};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined())
      return variable_list(kInputs<LinearAttentionArgs> + 1);
    const variable_list saved = ctx->get_saved_variables();
    const auto forward = saved_arguments<LinearAttentionArgs>(ctx, saved, 3);
    const auto wanted = wanted_inputs(ctx, forward);
    const BelowAutogradUnlessRecorded below(grads);
    return gradient_list(call(LinearAttentionBackwardArgs{
                             if_defined(grads[0]), if_defined(grads[1]), if_defined(grads[2]),
                             if_defined(saved[0]), saved[1], saved[2], forward, wanted}),
                         wanted);
  }
};

/// Where nothing is recorded no states are kept.
LinearAttentionArgs::Result linear_attention_autograd(const LinearAttentionArgs& args) {
  if (!is_recorded(args)) return below_autograd(args);
  const variable_list results = apply<LinearAttentionFunction>(args);
  return {results[0], results[1], results[2]};
}

// ---- autocast

/// Decays, the bonus and states stay as they are.
LinearAttentionArgs::Result linear_attention_autocast(const LinearAttentionArgs& args) {
  const AutocastTo lower(args.query.device().type());
  LinearAttentionArgs cast = args;
  for (Tensor* t : {&cast.query, &cast.key, &cast.value}) *t = lower(*t);
  return call(cast);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> linear_attention(const Tensor& query, const Tensor& key,
                                                    const Tensor& value,
                                                    const LinearAttentionOptions& o) {
  return call(LinearAttentionArgs{query, key, value, o.log_decay, o.bonus, o.scale, o.causal,
                                  o.normalize, o.eps, o.exclusive_chunk, o.initial_state,
                                  o.initial_norm, o.cu_seqlens});
}

}  // namespace fulgurite

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  const std::string arguments =
      "Tensor query, Tensor key, Tensor value, *, Tensor? log_decay=None, Tensor? bonus=None, "
      "float scale=1.0, bool causal=True, bool normalize=False, float eps=1e-6, int "
      "exclusive_chunk=0, Tensor? initial_state=None, Tensor? initial_norm=None, Tensor? "
      "cu_seqlens=None";
  const std::string results = "Tensor out, Tensor state, Tensor norm";
  fulgurite::define(m, "linear_attention(" + arguments + ") -> (" + results + ")");
  fulgurite::define(m, "_linear_attention_forward(" + arguments + ") -> (" + results +
                           ", Tensor kept, Tensor denominators)");
  fulgurite::define(m,
                    "_linear_attention_backward(Tensor? grad_out, Tensor? grad_state, Tensor? "
                    "grad_norm, Tensor? out, Tensor kept, Tensor denominators, " +
                        arguments +
                        ", bool[7] output_mask) -> (Tensor grad_query, Tensor grad_key, Tensor "
                        "grad_value, Tensor grad_log_decay, Tensor grad_bonus, Tensor "
                        "grad_initial_state, Tensor grad_initial_norm)");
}

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  fulgurite::implement<fulgurite::linear_attention_meta>(m);
  fulgurite::implement<fulgurite::linear_attention_forward_meta>(m);
  fulgurite::implement<fulgurite::linear_attention_backward_meta>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  fulgurite::implement<fulgurite::linear_attention_autograd>(m);
  for (const char* name : {"_linear_attention_forward", "_linear_attention_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) {
  fulgurite::implement<fulgurite::linear_attention_autocast>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) {
  fulgurite::implement<fulgurite::linear_attention_autocast>(m);
}
