// The arguments of adamw_ as one struct, so that the long list of the schema stands in C++ once.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "common/op_handle.h"

namespace fulgurite {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

struct AdamwArgs {
  TensorList params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters, copies, emas, steps;
  const Tensor& hyper;
  at::IntArrayRef groups;
  const OptionalTensor &grad_multiplier, &found_inf, &seed;
  at::OptionalIntArrayRef keys;
  bool decoupled, amsgrad, maximize, zero_grads;

  using Signature = void(TensorList, TensorList, TensorList, TensorList, TensorList, TensorList,
                         TensorList, TensorList, TensorList, const Tensor&, at::IntArrayRef,
                         const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                         at::OptionalIntArrayRef, bool, bool, bool, bool);
  /// Calls the operator through the dispatcher.
  void call() const {
    static const auto op = op_handle<Signature>("adamw_");
    op.call(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters, copies, emas, steps,
            hyper, groups, grad_multiplier, found_inf, seed, keys, decoupled, amsgrad, maximize,
            zero_grads);
  }
};

/// The function to register for f.
template <void (*f)(const AdamwArgs&)>
void adamw_from_schema(TensorList params, TensorList grads, TensorList exp_avgs,
                       TensorList exp_avg_sqs, TensorList max_exp_avg_sqs, TensorList masters,
                       TensorList copies, TensorList emas, TensorList steps, const Tensor& hyper,
                       at::IntArrayRef groups, const OptionalTensor& grad_multiplier,
                       const OptionalTensor& found_inf, const OptionalTensor& seed,
                       at::OptionalIntArrayRef keys, bool decoupled, bool amsgrad, bool maximize,
                       bool zero_grads) {
  f({params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters, copies, emas, steps, hyper,
     groups, grad_multiplier, found_inf, seed, keys, decoupled, amsgrad, maximize, zero_grads});
}

}  // namespace fulgurite
