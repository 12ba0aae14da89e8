#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "commands.h"

Tensors run_package(const std::string& package_path, const Tensors& inputs) {
  torch::inductor::AOTIModelPackageLoader loader(package_path);
  Tensors outputs;
  outputs.insert("out", loader.run({inputs.at("x")}).at(0));
  return outputs;
}
