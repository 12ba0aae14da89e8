// The C++ functions, with torch's C++ autograd.
#include <ATen/ops/arange.h>
#include <ATen/ops/log.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/autograd.h>

#include "fulgurite/attention.h"

#include "catch.h"

using at::Tensor;

namespace {

constexpr int64_t B = 2, H = 3, N = 7, M = 11, D = 4, Dv = 5;

Tensor input(at::IntArrayRef sizes) {
  return at::randn(sizes, at::TensorOptions(at::kDouble)).requires_grad_();
}

}  // namespace

TEST_CASE("out, lse and every gradient against plain ATen") {
  const Tensor query = input({B, H, N, D}), key = input({B, 1, M, D}), value = input({B, 1, M, Dv}),
               bias = input({H, 1, M});
  fulgurite::AttentionOptions options;
  options.bias = bias;
  options.causal = true;
  options.window_left = 4;
  options.scale = 0.6;
  const auto [out, lse] = fulgurite::attention(query, key, value, options);

  const Tensor position = at::arange(N).unsqueeze(1) + (M - N), index = at::arange(M);
  const Tensor kept = index.le(position).logical_and(index.ge(position - 4));
  const Tensor scores =
      (query.matmul(key.transpose(2, 3)) * 0.6 + bias).masked_fill(kept.logical_not(), -INFINITY);
  const Tensor plain_out = at::softmax(scores, 3).matmul(value);
  const Tensor plain_lse = at::logsumexp(scores, {3});
  REQUIRE(out.allclose(plain_out, 1e-10, 1e-12));
  REQUIRE(lse.allclose(plain_lse, 1e-10, 1e-12));

  const std::vector<Tensor> inputs{query, key, value, bias};
  const auto grads =
      torch::autograd::grad({out.square().sum() + lse.sin().sum()}, inputs, {}, true);
  const auto plain =
      torch::autograd::grad({plain_out.square().sum() + plain_lse.sin().sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) REQUIRE(grads[i].allclose(plain[i], 1e-9, 1e-10));
}

TEST_CASE("rotations: turned back they are where they were, and so are gradients") {
  const Tensor x = input({B, H, N, D}),
               angle = at::randn({N, D / 2}, at::TensorOptions(at::kDouble));
  const Tensor cos = angle.cos(), sin = angle.sin();
  const Tensor turned = fulgurite::rope(x, cos, sin);
  REQUIRE(fulgurite::rope(turned, cos, sin, false, true).allclose(x));
  const Tensor grad = at::randn(x.sizes(), x.options());
  const Tensor back = torch::autograd::grad({turned}, {x}, {grad})[0];
  REQUIRE(back.equal(fulgurite::rope(grad, cos, sin, false, true)));
}

TEST_CASE("bad input is refused in the words of the operator") {
  const Tensor query = at::randn({B, H, N, D}), key = at::randn({B, 1, M, D + 1});
  REQUIRE_THROWS_WITH(
      fulgurite::attention(query, key, key),
      ContainsSubstring("fulgurite::attention: expected key of shape [2, Hkv, M, 4]"));
  fulgurite::AttentionOptions options;
  options.align = "middle";
  REQUIRE_THROWS_AS(fulgurite::attention(query, query, query, options), c10::ValueError);
}
