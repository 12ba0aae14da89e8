// The arguments of the AdamW operators as structs, so that the long lists of the schemas stand in
// C++ once.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "common/op_handle.h"

namespace fulgurite {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

/// What every AdamW step has, however its moments are kept.
struct StepArgs {
  TensorList params, grads, masters, steps;
  const Tensor& hyper;
  at::IntArrayRef groups;
  const OptionalTensor &grad_multiplier, &found_inf, &seed;
  at::OptionalIntArrayRef keys;
  bool decoupled, maximize;
};

struct AdamwArgs : StepArgs {
  TensorList exp_avgs, exp_avg_sqs, max_exp_avg_sqs, copies, emas;
  bool amsgrad, zero_grads;

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

struct Adamw8bitArgs : StepArgs {
  TensorList exp_avg_codes, exp_avg_scales, exp_avg_sq_codes, exp_avg_sq_scales;

  using Signature = void(TensorList, TensorList, TensorList, TensorList, TensorList, TensorList,
                         TensorList, TensorList, const Tensor&, at::IntArrayRef,
                         const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                         at::OptionalIntArrayRef, bool, bool);
  void call() const {
    static const auto op = op_handle<Signature>("adamw_8bit_");
    op.call(params, grads, exp_avg_codes, exp_avg_scales, exp_avg_sq_codes, exp_avg_sq_scales,
            masters, steps, hyper, groups, grad_multiplier, found_inf, seed, keys, decoupled,
            maximize);
  }
};

/// The functions to register for f.
template <void (*f)(const AdamwArgs&)>
void adamw_from_schema(TensorList params, TensorList grads, TensorList exp_avgs,
                       TensorList exp_avg_sqs, TensorList max_exp_avg_sqs, TensorList masters,
                       TensorList copies, TensorList emas, TensorList steps, const Tensor& hyper,
                       at::IntArrayRef groups, const OptionalTensor& grad_multiplier,
                       const OptionalTensor& found_inf, const OptionalTensor& seed,
                       at::OptionalIntArrayRef keys, bool decoupled, bool amsgrad, bool maximize,
                       bool zero_grads) {
  f({{params, grads, masters, steps, hyper, groups, grad_multiplier, found_inf, seed, keys,
      decoupled, maximize},
     exp_avgs,
     exp_avg_sqs,
     max_exp_avg_sqs,
     copies,
     emas,
     amsgrad,
     zero_grads});
}

template <void (*f)(const Adamw8bitArgs&)>
void adamw_8bit_from_schema(TensorList params, TensorList grads, TensorList exp_avg_codes,
                            TensorList exp_avg_scales, TensorList exp_avg_sq_codes,
                            TensorList exp_avg_sq_scales, TensorList masters, TensorList steps,
                            const Tensor& hyper, at::IntArrayRef groups,
                            const OptionalTensor& grad_multiplier, const OptionalTensor& found_inf,
                            const OptionalTensor& seed, at::OptionalIntArrayRef keys,
                            bool decoupled, bool maximize) {
  f({{params, grads, masters, steps, hyper, groups, grad_multiplier, found_inf, seed, keys,
      decoupled, maximize},
     exp_avg_codes,
     exp_avg_scales,
     exp_avg_sq_codes,
     exp_avg_sq_scales});
}

}  // namespace fulgurite
