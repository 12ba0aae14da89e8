// The C++ functions, with torch's C++ autograd.
#include <ATen/ops/cat.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include "fulgurite/linear.h"

#include "catch.h"

using at::Tensor;

TEST_CASE("a causal convolution trains in C++, and goes on from its state") {
  const auto options = at::TensorOptions(at::kDouble);
  const Tensor x = at::randn({2, 3, 10}, options).requires_grad_(),
               weight = at::randn({3, 4}, options).requires_grad_(),
               bias = at::randn({3}, options).requires_grad_();
  fulgurite::CausalConv1dOptions conv;
  conv.bias = bias;
  conv.activation = "silu";
  const auto [out, state] = fulgurite::causal_conv1d(x, weight, conv);
  const Tensor line = at::cat({at::zeros({2, 3, 3}, options), x}, 2);
  Tensor sum = bias.unsqueeze(1).expand({2, 3, 10});
  for (int64_t w = 0; w < 4; ++w) sum = sum + weight.slice(1, w, w + 1) * line.slice(2, w, w + 10);
  const Tensor expected = at::silu(sum);
  REQUIRE(out.allclose(expected, 1e-12, 1e-12));
  REQUIRE(state.equal(x.slice(2, 7)));
  const std::vector<Tensor> inputs{x, weight, bias};
  const auto grads = torch::autograd::grad({out.square().sum()}, inputs, {}, true);
  const auto plain = torch::autograd::grad({expected.square().sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) REQUIRE(grads[i].allclose(plain[i], 1e-10, 1e-10));

  const auto [first, middle] = fulgurite::causal_conv1d(x.slice(2, 0, 4), weight, conv);
  conv.initial_state = middle;
  const auto [second, last] = fulgurite::causal_conv1d(x.slice(2, 4), weight, conv);
  REQUIRE(at::cat({first, second}, 2).equal(out));
  REQUIRE(last.equal(state));
}

TEST_CASE("linear attention trains in C++, and goes on from its state") {
  const auto options = at::TensorOptions(at::kDouble);
  const Tensor query = at::randn({1, 2, 300, 3}, options).requires_grad_(),
               key = at::randn({1, 2, 300, 3}, options).requires_grad_(),
               value = at::randn({1, 2, 300, 4}, options).requires_grad_(),
               decay = (-at::rand({1, 2, 300}, options)).requires_grad_();
  fulgurite::LinearAttentionOptions attention;
  attention.log_decay = decay;
  attention.scale = 0.5;
  const auto [out, state, norm] = fulgurite::linear_attention(query, key, value, attention);
  Tensor S = at::zeros({1, 2, 3, 4}, options);
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < 300; ++t) {
    const auto at = [t](const Tensor& x) { return x.select(2, t); };
    S = at(decay).exp().unsqueeze(-1).unsqueeze(-1) * S +
        at(key).unsqueeze(-1) * at(value).unsqueeze(-2);
    rows.push_back(0.5 * (at(query).unsqueeze(-1) * S).sum(-2));
  }
  const Tensor expected = at::stack(rows, 2);
  REQUIRE(out.allclose(expected, 1e-12, 1e-12));
  REQUIRE(state.allclose(S, 1e-12, 1e-12));
  REQUIRE(norm.eq(0).all().item<bool>());
  const std::vector<Tensor> inputs{query, key, value, decay};
  const auto grads = torch::autograd::grad({out.square().sum()}, inputs, {}, true);
  const auto plain = torch::autograd::grad({expected.square().sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) REQUIRE(grads[i].allclose(plain[i], 1e-9, 1e-9));

  const auto part = [&](const Tensor& x, int64_t a, int64_t b) { return x.slice(2, a, b); };
  const auto piece = [&](int64_t a, int64_t b) {
    attention.log_decay = part(decay, a, b);
    return fulgurite::linear_attention(part(query, a, b), part(key, a, b), part(value, a, b),
                                       attention);
  };
  const auto [first, middle, none] = piece(0, 256);
  attention.initial_state = middle;
  const auto [second, last, nothing] = piece(256, 300);
  REQUIRE(at::cat({first, second}, 2).equal(out));
  REQUIRE(last.equal(state));
}
