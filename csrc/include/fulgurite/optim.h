// AdamW over whole lists of tensors, for C++ programs. Semantics, order of operations and errors:
// docs/ops/adamw_.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "fulgurite/config.h"

namespace fulgurite {

/// The tensors that a step reads and writes. Lists that are not needed stay empty; in the others,
/// an entry with 0 elements means "none for this tensor".
struct AdamwTensors {
  std::vector<at::Tensor> params, grads, exp_avgs, exp_avg_sqs;
  std::vector<at::Tensor> max_exp_avg_sqs, masters, copies, emas;
  std::vector<at::Tensor> steps;  // 0-dim float32 each
};

struct AdamwOptions {
  std::optional<at::Tensor> grad_multiplier, found_inf;  // 0-dim float32
  std::optional<at::Tensor> seed;  // int64 (seed, step): rounds 16-bit parameters stochastically
  std::optional<std::vector<int64_t>> keys;  // of the tensors, for the same bits in other lists
  bool decoupled = true, amsgrad = false, maximize = false, zero_grads = false;
};

/// One AdamW step of every tensor. hyper (groups, 6) float64: lr, beta1, beta2, eps, weight_decay,
/// ema_decay; groups[i] is the row of tensor i. Call it with gradients switched off
/// (at::NoGradGuard), as any optimizer.
FULGURITE_API void adamw_(const AdamwTensors& tensors, const at::Tensor& hyper,
                          const std::vector<int64_t>& groups, const AdamwOptions& options = {});

/// Moments of 8 bits: codes (uint8) in the parameters' shapes, scales (float32) of their blocks of 256
/// elements, ceil(n/256) each.
struct Adamw8bitTensors {
  std::vector<at::Tensor> params, grads;
  std::vector<at::Tensor> exp_avg_codes, exp_avg_scales, exp_avg_sq_codes, exp_avg_sq_scales;
  std::vector<at::Tensor> masters;
  std::vector<at::Tensor> steps;
};

struct Adamw8bitOptions {
  std::optional<at::Tensor> grad_multiplier, found_inf, seed;
  std::optional<std::vector<int64_t>> keys;
  bool decoupled = true, maximize = false;
};

/// adamw_ with 8-bit moments; a moment of 0 has the code 127 (exp_avg) or 0 (exp_avg_sq) and scale 0.
FULGURITE_API void adamw_8bit_(const Adamw8bitTensors& tensors, const at::Tensor& hyper,
                               const std::vector<int64_t>& groups,
                               const Adamw8bitOptions& options = {});

/// float32 master -> high (bfloat16), low (int16), lossless.
FULGURITE_API std::tuple<at::Tensor, at::Tensor> split_master(const at::Tensor& master);
FULGURITE_API at::Tensor join_master(const at::Tensor& high, const at::Tensor& low);

}  // namespace fulgurite
