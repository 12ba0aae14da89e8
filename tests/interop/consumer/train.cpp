#include <torch/script.h>

#include "commands.h"

Tensors train_step(const std::string& module_path, const Tensors& inputs) {
  torch::jit::Module module = torch::jit::load(module_path);
  const at::Tensor loss = module.forward({inputs.at("x"), inputs.at("target")}).toTensor();
  loss.backward();

  Tensors outputs;
  outputs.insert("loss", loss.detach());
  const at::NoGradGuard no_grad;
  const double rate = inputs.at("rate").item<double>();
  for (const auto& parameter : module.named_parameters()) {
    parameter.value.add_(parameter.value.grad(), -rate);
    outputs.insert(parameter.name, parameter.value.detach());
  }
  return outputs;
}
