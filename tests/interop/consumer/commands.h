// Each command reads a dict of tensors that Python wrote with torch.save and gives back another for torch.load.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>

#include <string>

using Tensors = c10::Dict<std::string, at::Tensor>;

/// fulgurite::attention and rope through the public header, with gradients.
Tensors run_attention(const Tensors& inputs);

/// One clipped AdamW step of a TorchScript module: inputs `x`, `target` and `hyper`; the loss, the
/// squared norm of the gradients, the router's new selection bias, every parameter after the step.
Tensors train_step(const std::string& module_path, const Tensors& inputs);

/// A package made by AOTInductor: input `x`, output `out`.
Tensors run_package(const std::string& package_path, const Tensors& inputs);
