#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fulgurite/amp.h>
#include <fulgurite/optim.h>
#include <torch/script.h>

#include "commands.h"

Tensors train_step(const std::string& module_path, const Tensors& inputs) {
  torch::jit::Module module = torch::jit::load(module_path);
  const at::Tensor loss = module.forward({inputs.at("x"), inputs.at("target")}).toTensor();
  loss.backward();

  const at::NoGradGuard no_grad;
  fulgurite::AdamwTensors tensors;
  for (const at::Tensor& parameter : module.parameters()) {
    tensors.params.push_back(parameter);
    tensors.grads.push_back(parameter.grad());
    tensors.exp_avgs.push_back(at::zeros_like(parameter));
    tensors.exp_avg_sqs.push_back(at::zeros_like(parameter));
    tensors.steps.push_back(at::zeros({}));
  }
  const auto [found_inf, norm_sq, first_bad] = fulgurite::grad_stats(tensors.grads);
  fulgurite::AdamwOptions options;
  options.grad_multiplier = fulgurite::clip_multiplier(norm_sq, /*max_norm=*/1.0);
  options.found_inf = found_inf;
  const std::vector<int64_t> groups(tensors.params.size(), 0);
  fulgurite::adamw_(tensors, inputs.at("hyper"), groups, options);

  Tensors outputs;
  outputs.insert("loss", loss.detach());
  outputs.insert("norm_sq", norm_sq);
  outputs.insert("bias", module.run_method("finish_step").toTensor());
  for (const auto& parameter : module.named_parameters()) {
    outputs.insert(parameter.name, parameter.value.detach());
  }
  return outputs;
}
