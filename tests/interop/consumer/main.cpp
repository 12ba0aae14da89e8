// consumer THREADS INPUTS OUTPUTS attention | train MODULE.pt | package MODEL.pt2
#include <ATen/Parallel.h>
#include <torch/script.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include "commands.h"

namespace {

Tensors read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  Tensors tensors;
  for (const auto& entry : torch::jit::pickle_load(bytes).toGenericDict()) {
    tensors.insert(entry.key().toStringRef(), entry.value().toTensor());
  }
  return tensors;
}

void write(const char* path, const Tensors& tensors) {
  const std::vector<char> bytes = torch::jit::pickle_save(tensors);
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

Tensors run(const std::string& command, const char* path, const Tensors& inputs) {
  if (command == "attention") return run_attention(inputs);
  if (command == "train") return train_step(path, inputs);
  if (command == "package") return run_package(path, inputs);
  throw std::invalid_argument("unknown command " + command);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: consumer THREADS INPUTS OUTPUTS attention | train MODULE.pt | package "
                 "MODEL.pt2\n";
    return 2;
  }
  try {
    at::set_num_threads(std::atoi(argv[1]));
    write(argv[3], run(argv[4], argc > 5 ? argv[5] : "", read(argv[2])));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
