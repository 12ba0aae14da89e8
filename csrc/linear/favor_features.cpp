// Random features: schema, checks, Meta, gradients and autocast.
#include "linear/favor_features.h"

#include "common/autocast.h"
#include "common/check_choice.h"
#include "common/define.h"
#include "common/fresh.h"
#include "common/offsets.h"
#include "common/saved_arguments.h"
#include "fulgurite/linear.h"
#include "linear/rules/choices.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const RegisteredChoice favor_kind{"favor_features.kind", kFavorKinds};

void check_favor_types(const char* op, const FavorFeaturesArgs& a) {
  check_float(op, "x", a.x);
  const at::ScalarType dtype = a.projection.scalar_type();
  FULGURITE_CHECK_TYPE(dtype == a.x.scalar_type() || dtype == at::kFloat,
                       "expected projection of x's dtype ", a.x.scalar_type(), " or float32, got ",
                       dtype);
  if (a.cu_seqlens) check_offsets_type(op, "cu_seqlens", *a.cu_seqlens);
}

c10::SymDimVector check_favor_shapes(const char* op, const FavorFeaturesArgs& a) {
  check_dim(op, "x", a.x, 4, "[B, H, N, D]");
  FULGURITE_CHECK(holds(a.x.sym_size(3).sym_ge(1)),
                  "expected x of shape [B, H, N, D] with D >= 1, got ", a.x.sym_sizes());
  check_dim(op, "projection", a.projection, 2, "[m, D]");
  FULGURITE_CHECK(same_size(a.projection.sym_size(1), a.x.sym_size(3)),
                  "expected projection of shape [m, ", a.x.sym_size(3), "], got ",
                  a.projection.sym_sizes());
  check_place(op, "projection", a.projection, a.x);
  if (a.cu_seqlens) {
    check_dim(op, "cu_seqlens", *a.cu_seqlens, 1, "[sequences + 1]");
    FULGURITE_CHECK(holds(a.cu_seqlens->sym_size(0).sym_ge(1)),
                    "expected cu_seqlens of shape [sequences + 1], got ",
                    a.cu_seqlens->sym_sizes());
    check_place(op, "cu_seqlens", *a.cu_seqlens, a.x);
    FULGURITE_CHECK(same_size(a.x.sym_size(0), 1),
                    "expected x with a batch of 1 with cu_seqlens, got ", a.x.sym_sizes());
  }
  const c10::SymInt rows = a.projection.sym_size(0);
  const bool both = find_choice(kFavorKinds, a.kind) == FavorKind::kHyperbolic;
  return {a.x.sym_size(0), a.x.sym_size(1), a.x.sym_size(2), both ? rows * 2 : rows};
}

void check_favor_values(const char* op, const FavorFeaturesArgs& a) {
  check_choice(op, "kind", kFavorKinds, a.kind);
  check_not_negative(op, "eps", a.eps);
}

}  // namespace

c10::SymDimVector check_favor_features(const FavorFeaturesArgs& a) {
  constexpr const char* op = FavorFeaturesArgs::kName;
  check_favor_types(op, a);
  c10::SymDimVector shape = check_favor_shapes(op, a);
  check_favor_values(op, a);
  return shape;
}

void check_favor_features_backward(const FavorFeaturesBackwardArgs& a) {
  constexpr const char* op = FavorFeaturesBackwardArgs::kName;
  check_favor_types(op, a.forward);
  check_same_dtype(op, "grad_out", a.grad_out, "x", a.forward.x);
  check_same_dtype(op, "out", a.out, "x", a.forward.x);
  const c10::SymDimVector shape = check_favor_shapes(op, a.forward);
  check_sizes(op, "grad_out", a.grad_out, shape);
  check_place(op, "grad_out", a.grad_out, a.forward.x);
  check_sizes(op, "out", a.out, shape);
  check_place(op, "out", a.out, a.forward.x);
  check_favor_values(op, a.forward);
}

namespace {

Tensor favor_features_meta(const FavorFeaturesArgs& args) {
  return at::empty_symint(check_favor_features(args), args.x.options());
}

FavorFeaturesBackwardArgs::Result favor_features_backward_meta(
    const FavorFeaturesBackwardArgs& args) {
  check_favor_features_backward(args);
  const FavorFeaturesArgs& f = args.forward;
  return {fresh_gradient(args.output_mask[kFavorX], f.x),
          fresh_gradient(args.output_mask[kFavorProjection], f.projection, f.x)};
}

struct FavorFeaturesFunction : torch::autograd::Function<FavorFeaturesFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& /*x*/,
                               const Tensor& /*projection*/, const FavorFeaturesArgs& args) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor out = call(args);
    variable_list saved{saved_output(out)};
    save(ctx, args, saved);
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return {out};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(kInputs<FavorFeaturesArgs> + 1);
    const variable_list saved = ctx->get_saved_variables();
    const auto forward = saved_arguments<FavorFeaturesArgs>(ctx, saved, 1);
    const auto wanted = wanted_inputs(ctx, forward);
    const BelowAutogradUnlessRecorded below(grads);
    return gradient_list(call(FavorFeaturesBackwardArgs{grads[0], saved[0], forward, wanted}),
                         wanted);
  }
};

Tensor favor_features_autograd(const FavorFeaturesArgs& args) {
  return apply<FavorFeaturesFunction>(args)[0];
}

Tensor favor_features_autocast(const FavorFeaturesArgs& args) {
  const AutocastTo float32(args.x.device().type(), at::kFloat);
  FavorFeaturesArgs cast = args;
  cast.x = float32(args.x);
  cast.projection = float32(args.projection);
  return call(cast);
}

}  // namespace

Tensor favor_features(const Tensor& x, const Tensor& projection, bool is_query,
                      const FavorFeaturesOptions& o) {
  return call(FavorFeaturesArgs{x, projection, is_query, o.eps, o.kind, o.cu_seqlens});
}

}  // namespace fulgurite

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  const std::string features =
      "Tensor x, Tensor projection, *, bool is_query, float eps=1e-4, str kind=\"positive\", "
      "Tensor? cu_seqlens=None";
  fulgurite::define(m, "favor_features(" + features + ") -> Tensor");
  fulgurite::define(m, "_favor_features_backward(Tensor grad_out, Tensor out, " + features +
                           ", bool[2] output_mask) -> (Tensor grad_x, Tensor grad_projection)");
}

TORCH_LIBRARY_IMPL(fulgurite, Meta, m) {
  fulgurite::implement<fulgurite::favor_features_meta>(m);
  fulgurite::implement<fulgurite::favor_features_backward_meta>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, Autograd, m) {
  fulgurite::implement<fulgurite::favor_features_autograd>(m);
  m.impl("_favor_features_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) {
  fulgurite::implement<fulgurite::favor_features_autocast>(m);
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) {
  fulgurite::implement<fulgurite::favor_features_autocast>(m);
}
