// The arguments of the experts' operators, as moe/args.h has those of the others.
#pragma once

#include "moe/args.h"

namespace fulgurite {

struct ExpertsArgs {
  Tensor x, ids, weights, w_in, w_out;
  OptionalTensor b_in, b_out;
  std::string_view activation;
  bool gated, interleaved, transposed;
  double alpha, limit;
  bool save_hidden;

  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const Tensor&, const OptionalTensor&, const OptionalTensor&,
                           std::string_view, bool, bool, bool, double, double, bool);
  Tensor call() const {
    static const auto op = op_handle<Signature>("moe_experts");
    return op.call(x, ids, weights, w_in, w_out, b_in, b_out, activation, gated, interleaved,
                   transposed, alpha, limit, save_hidden);
  }

  using ForwardSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                      const Tensor&, const Tensor&,
                                                      const OptionalTensor&, const OptionalTensor&,
                                                      std::string_view, bool, bool, bool, double,
                                                      double);
  /// The result and what the backward needs of it: the hidden layer of the sorted assignments.
  std::tuple<Tensor, Tensor> call_saving() const {
    static const auto op = op_handle<ForwardSignature>("_moe_experts_forward");
    return op.call(x, ids, weights, w_in, w_out, b_in, b_out, activation, gated, interleaved,
                   transposed, alpha, limit);
  }
};

template <Tensor (*f)(const ExpertsArgs&)>
Tensor experts_from_schema(const Tensor& x, const Tensor& ids, const Tensor& weights,
                           const Tensor& w_in, const Tensor& w_out, const OptionalTensor& b_in,
                           const OptionalTensor& b_out, std::string_view activation, bool gated,
                           bool interleaved, bool transposed, double alpha, double limit,
                           bool save_hidden) {
  return f({x, ids, weights, w_in, w_out, b_in, b_out, activation, gated, interleaved, transposed,
            alpha, limit, save_hidden});
}

template <std::tuple<Tensor, Tensor> (*f)(const ExpertsArgs&)>
std::tuple<Tensor, Tensor> experts_forward_from_schema(
    const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w_in,
    const Tensor& w_out, const OptionalTensor& b_in, const OptionalTensor& b_out,
    std::string_view activation, bool gated, bool interleaved, bool transposed, double alpha,
    double limit) {
  return f({x, ids, weights, w_in, w_out, b_in, b_out, activation, gated, interleaved, transposed,
            alpha, limit, true});
}

/// x, weights, w_in, w_out, b_in, b_out
using ExpertsGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct ExpertsBackwardArgs {
  Tensor grad;
  ExpertsArgs forward;
  OptionalTensor hidden;  // none: computed again
  std::array<bool, 6> output_mask;

  using Signature = ExpertsGradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     const Tensor&, const Tensor&, const OptionalTensor&,
                                     const OptionalTensor&, const OptionalTensor&, std::string_view,
                                     bool, bool, bool, double, double, std::array<bool, 6>);
  ExpertsGradients call() const {
    static const auto op = op_handle<Signature>("_moe_experts_backward");
    const ExpertsArgs& f = forward;
    return op.call(grad, f.x, f.ids, f.weights, f.w_in, f.w_out, hidden, f.b_in, f.b_out,
                   f.activation, f.gated, f.interleaved, f.transposed, f.alpha, f.limit,
                   output_mask);
  }
};

template <ExpertsGradients (*f)(const ExpertsBackwardArgs&)>
ExpertsGradients experts_backward_from_schema(
    const Tensor& grad, const Tensor& x, const Tensor& ids, const Tensor& weights,
    const Tensor& w_in, const Tensor& w_out, const OptionalTensor& hidden,
    const OptionalTensor& b_in, const OptionalTensor& b_out, std::string_view activation,
    bool gated, bool interleaved, bool transposed, double alpha, double limit,
    std::array<bool, 6> output_mask) {
  return f({grad,
            {x, ids, weights, w_in, w_out, b_in, b_out, activation, gated, interleaved, transposed,
             alpha, limit, hidden.has_value()},
            hidden,
            output_mask});
}

// ---- grouped products

struct GroupedMmArgs {
  Tensor x, weight, offsets;
  OptionalTensor bias;
  bool transposed;

  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                           bool);
  Tensor call() const {
    static const auto op = op_handle<Signature>("moe_grouped_mm");
    return op.call(x, weight, offsets, bias, transposed);
  }
};

template <Tensor (*f)(const GroupedMmArgs&)>
Tensor grouped_mm_from_schema(const Tensor& x, const Tensor& weight, const Tensor& offsets,
                              const OptionalTensor& bias, bool transposed) {
  return f({x, weight, offsets, bias, transposed});
}

using GroupedMmGradients = std::tuple<Tensor, Tensor, Tensor>;  // x, weight, bias

struct GroupedMmBackwardArgs {
  Tensor grad, x, weight, offsets;
  bool transposed;
  std::array<bool, 3> output_mask;

  using Signature = GroupedMmGradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       bool, std::array<bool, 3>);
  GroupedMmGradients call() const {
    static const auto op = op_handle<Signature>("_moe_grouped_mm_backward");
    return op.call(grad, x, weight, offsets, transposed, output_mask);
  }
};

template <GroupedMmGradients (*f)(const GroupedMmBackwardArgs&)>
GroupedMmGradients grouped_mm_backward_from_schema(const Tensor& grad, const Tensor& x,
                                                   const Tensor& weight, const Tensor& offsets,
                                                   bool transposed,
                                                   std::array<bool, 3> output_mask) {
  return f({grad, x, weight, offsets, transposed, output_mask});
}

}  // namespace fulgurite
