// The arguments of the optim family (common/arguments.h).
#pragma once

#include "common/arguments.h"

namespace fulgurite {

/// What every AdamW step has, however its moments are kept.
struct StepArgs {
  TensorList params, grads, masters, steps;
  Tensor hyper;
  at::IntArrayRef groups;
  OptionalTensor grad_multiplier, found_inf, seed;
  at::OptionalIntArrayRef keys;
  bool decoupled, maximize;
};

struct AdamwArgs : StepArgs {
  static constexpr const char* kName = "adamw_";
  using Result = void;
  TensorList exp_avgs, exp_avg_sqs, max_exp_avg_sqs, copies, emas;
  bool amsgrad, zero_grads;
  FULGURITE_MEMBERS(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters, copies, emas,
                    steps, hyper, groups, grad_multiplier, found_inf, seed, keys, decoupled,
                    amsgrad, maximize, zero_grads)
};

struct Adamw8bitArgs : StepArgs {
  static constexpr const char* kName = "adamw_8bit_";
  using Result = void;
  TensorList exp_avg_codes, exp_avg_scales, exp_avg_sq_codes, exp_avg_sq_scales;
  FULGURITE_MEMBERS(params, grads, exp_avg_codes, exp_avg_scales, exp_avg_sq_codes,
                    exp_avg_sq_scales, masters, steps, hyper, groups, grad_multiplier, found_inf,
                    seed, keys, decoupled, maximize)
};

struct SplitMasterArgs {
  static constexpr const char* kName = "split_master";
  using Result = std::tuple<Tensor, Tensor>;  // high, low
  Tensor master;
  FULGURITE_MEMBERS(master)
};

struct JoinMasterArgs {
  static constexpr const char* kName = "join_master";
  using Result = Tensor;
  Tensor high, low;
  FULGURITE_MEMBERS(high, low)
};

}  // namespace fulgurite
