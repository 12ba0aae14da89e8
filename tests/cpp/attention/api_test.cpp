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

TEST_CASE("packed sequences equal each sequence alone") {
  const Tensor query = input({9, H, D}), key = input({12, 1, D}), value = input({12, 1, Dv});
  const Tensor query_starts = at::arange(0, 10, 3), key_starts = at::arange(0, 13, 4);
  fulgurite::AttentionVarlenOptions options;
  options.causal = true;
  const auto [out, lse] =
      fulgurite::attention_varlen(query, key, value, query_starts, key_starts, options);
  fulgurite::AttentionOptions alone;
  alone.causal = true;
  const auto sequence = [](const Tensor& rows, int64_t start, int64_t length) {
    return rows.narrow(0, start, length).transpose(0, 1).unsqueeze(0);
  };
  for (int64_t s = 0; s < 3; ++s) {
    const auto [one, one_lse] = fulgurite::attention(
        sequence(query, 3 * s, 3), sequence(key, 4 * s, 4), sequence(value, 4 * s, 4), alone);
    REQUIRE(sequence(out, 3 * s, 3).equal(one));
    REQUIRE(lse.narrow(1, 3 * s, 3).equal(one_lse[0]));
  }
  REQUIRE(torch::autograd::grad({out.sum()}, {key})[0].sizes() == key.sizes());
}

TEST_CASE("two halves of a cache, merged, equal the whole") {
  const Tensor query = at::randn({B, H, 1, D}, at::kDouble),
               key = at::randn({B, 1, M, D}, at::kDouble);
  const Tensor all = at::arange(2) * 0 + M, first = at::arange(2) * 0 + 6, rest = all - first;
  fulgurite::AttentionDecodeOptions options;
  options.causal = false;
  const auto [out, lse] = fulgurite::attention_decode(query, key, key, all, options);
  const auto [left, left_lse] = fulgurite::attention_decode(query, key, key, first, options);
  const Tensor tail = key.narrow(2, 6, M - 6);
  const auto [right, right_lse] = fulgurite::attention_decode(query, tail, tail, rest, options);
  const auto [merged, merged_lse] =
      fulgurite::attention_merge({left, right}, {left_lse, right_lse});
  REQUIRE(merged.allclose(out, 1e-12, 1e-14));
  REQUIRE(merged_lse.allclose(lse, 1e-12, 1e-14));
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
