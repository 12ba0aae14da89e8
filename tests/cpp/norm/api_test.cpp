// The C++ function, with torch's C++ autograd.
#include <ATen/ops/randn.h>
#include <torch/csrc/autograd/autograd.h>

#include "fulgurite/norm.h"

#include "catch.h"

using at::Tensor;

TEST_CASE("rows are normalised, and train, in C++") {
  const auto options = at::TensorOptions(at::kDouble);
  const Tensor x = at::randn({2, 3, 10}, options).requires_grad_(),
               weight = at::randn({10}, options).requires_grad_();
  fulgurite::RmsNormOptions norm;
  norm.weight = weight;
  norm.eps = 1e-5;
  norm.weight_shift = 1;
  const Tensor out = fulgurite::rms_norm(x, norm),
               expected = x * (x.square().mean(-1, true) + 1e-5).rsqrt() * (weight + 1);
  REQUIRE(out.allclose(expected, 1e-12, 1e-12));
  const std::vector<Tensor> inputs{x, weight};
  const auto grads = torch::autograd::grad({out.square().sum()}, inputs, {}, true);
  const auto plain = torch::autograd::grad({expected.square().sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) REQUIRE(grads[i].allclose(plain[i], 1e-10, 1e-10));
}
