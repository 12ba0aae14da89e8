// The C++ functions, with torch's C++ autograd.
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include "fulgurite/moe.h"

#include <cmath>

#include "catch.h"

using at::Tensor;

namespace {

/// One expert after the other, in plain ATen.
Tensor plain_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w_in,
                     const Tensor& w_out) {
  Tensor y = at::zeros_like(x);
  for (int64_t e = 0; e < w_in.size(0); ++e) {
    const auto gate_up = x.matmul(w_in[e].t()).chunk(2, 1);
    const Tensor row = (at::silu(gate_up[0]) * gate_up[1]).matmul(w_out[e].t());
    y = y + row * (weights * ids.eq(e)).sum(1, true);
  }
  return y;
}

}  // namespace

TEST_CASE("a routed layer trains in C++") {
  const auto options = at::TensorOptions(at::kDouble);
  const Tensor x = at::randn({20, 6}, options).requires_grad_(),
               router = at::randn({4, 6}, options).requires_grad_();
  const Tensor w_in = at::randn({4, 10, 6}, options).requires_grad_(),
               w_out = at::randn({4, 6, 5}, options).requires_grad_();
  fulgurite::MoeRouteOptions route;
  route.score = "sigmoid";
  route.bias = at::zeros({4});
  const Tensor logits = x.matmul(router.t());
  const auto [weights, ids, counts] = fulgurite::moe_route(logits, 2, route);
  REQUIRE(counts.sum().item<int64_t>() == 40);
  const Tensor y = fulgurite::moe_experts(x, ids, weights, w_in, w_out);
  const Tensor expected = plain_experts(x, ids, weights, w_in, w_out);
  REQUIRE(y.allclose(expected, 1e-10, 1e-12));
  const std::vector<Tensor> inputs{x, router, w_in, w_out};
  const auto grads = torch::autograd::grad({y.square().sum()}, inputs, {}, true);
  const auto plain = torch::autograd::grad({expected.square().sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) REQUIRE(grads[i].allclose(plain[i], 1e-9, 1e-10));
}

TEST_CASE("plan, permute and combine") {
  const Tensor x = at::randn({7, 3}).requires_grad_(),
               ids = at::arange(14).reshape({7, 2}).remainder(5);
  const auto [permutation, inverse, offsets] = fulgurite::moe_plan(ids, 5);
  const Tensor y = fulgurite::moe_combine(fulgurite::moe_permute(x, permutation, inverse), inverse);
  REQUIRE(y.equal(x * 2));
  REQUIRE(torch::autograd::grad({y.sum()}, {x})[0].equal(at::ones_like(x) * 2));
  REQUIRE(offsets[5].item<int64_t>() == 14);
}

TEST_CASE("experts choose tokens") {
  const Tensor logits = at::randn({9, 3}, at::kDouble).requires_grad_();
  const auto [weights, token_ids] = fulgurite::moe_route_expert_choice(logits, 4);
  const auto [values, indices] = logits.softmax(1).topk(4, 0);
  REQUIRE(token_ids.t().equal(indices.to(at::kInt)));
  REQUIRE(weights.t().allclose(values));
  REQUIRE(torch::autograd::grad({weights.square().sum()}, {logits})[0].allclose(
      torch::autograd::grad({values.square().sum()}, {logits})[0]));
}

TEST_CASE("a plan with a capacity") {
  fulgurite::MoePlanOptions options;
  options.capacity = 2;
  options.drop = "weight";
  options.weights = at::arange(4, at::kFloat).reshape({4, 1});
  const auto [permutation, inverse, offsets] =
      fulgurite::moe_plan(at::zeros({4, 1}, at::kInt), 3, options);
  REQUIRE(permutation.equal(at::arange(2, 6).remainder(4).to(at::kInt)));
  REQUIRE(inverse.flatten()[0].item<int64_t>() == -1);
  REQUIRE(offsets[3].item<int64_t>() == 2);
}

TEST_CASE("experts of another kind: gates beside ups, biases, clamped") {
  const auto options = at::TensorOptions(at::kDouble);
  const Tensor x = at::randn({9, 4}, options).requires_grad_(),
               w_in = at::randn({2, 4, 6}, options).requires_grad_(),
               w_out = at::randn({2, 3, 4}, options).requires_grad_();
  const Tensor ids = at::arange(9).reshape({9, 1}).remainder(2),
               weights = at::ones({9, 1}, options);
  fulgurite::MoeExpertsOptions o;
  o.b_in = at::randn({2, 6}, options).requires_grad_();
  o.b_out = at::randn({2, 4}, options).requires_grad_();
  o.activation = "swiglu_oai";
  o.interleaved = o.transposed = true;
  o.alpha = 1.702;
  o.limit = 1;
  const Tensor y = fulgurite::moe_experts(x, ids, weights, w_in, w_out, o);
  const auto [permutation, inverse, offsets] = fulgurite::moe_plan(ids, 2);
  const Tensor hidden = fulgurite::moe_grouped_mm(fulgurite::moe_permute(x, permutation, inverse),
                                                  w_in, offsets, o.b_in, true);
  const Tensor gate = hidden.slice(1, 0, 6, 2).clamp_max(1),
               up = hidden.slice(1, 1, 6, 2).clamp(-1, 1);
  const Tensor rows = fulgurite::moe_grouped_mm(gate * (gate * 1.702).sigmoid() * (up + 1), w_out,
                                                offsets, o.b_out, true);
  const Tensor expected = fulgurite::moe_combine(rows, inverse);
  REQUIRE(y.allclose(expected, 1e-10, 1e-12));
  const std::vector<Tensor> inputs{x, w_in, w_out, *o.b_in, *o.b_out};
  const auto grads = torch::autograd::grad({y.square().sum()}, inputs);
  const auto parts = torch::autograd::grad({expected.square().sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) REQUIRE(grads[i].allclose(parts[i], 1e-9, 1e-10));
}

TEST_CASE("losses and the selection bias") {
  const Tensor logits = at::zeros({4, 2}).requires_grad_(),
               ids = at::arange(4).reshape({4, 1}).remainder(2);
  REQUIRE(fulgurite::moe_balance_loss(logits, ids).item<double>() == 1.0);
  const Tensor z = fulgurite::moe_z_loss(logits);
  REQUIRE(std::fabs(z.item<double>() - std::log(2.0) * std::log(2.0)) < 1e-6);
  REQUIRE(torch::autograd::grad({z}, {logits})[0].defined());
  Tensor bias = at::zeros({2});
  const auto version = bias._version();
  fulgurite::moe_update_bias_(bias, at::arange(2), 0.5);
  REQUIRE(bias[0].item<double>() == 0.5);
  REQUIRE(bias._version() == version + 1);
  fulgurite::MoeRouteOptions wrong;
  wrong.score = "relu";
  REQUIRE_THROWS_AS(fulgurite::moe_route(logits, 1, wrong), c10::ValueError);
}
