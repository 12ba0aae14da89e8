// A training step in C++: statistics, clipping and AdamW through the public headers.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "fulgurite/amp.h"
#include "fulgurite/optim.h"

#include "catch.h"

using at::Tensor;

namespace {

fulgurite::AdamwTensors lists(const std::vector<Tensor>& params) {
  fulgurite::AdamwTensors t;
  t.params = params;
  for (const Tensor& p : params) {
    t.grads.push_back(p.grad());
    t.exp_avgs.push_back(at::zeros_like(p));
    t.exp_avg_sqs.push_back(at::zeros_like(p));
    t.steps.push_back(at::zeros({}));
  }
  return t;
}

const Tensor kHyper = at::tensor({0.05, 0.9, 0.99, 1e-8, 0.0, 0.0}, at::kDouble).view({1, 6});

}  // namespace

TEST_CASE("AdamW fits a line, clipped") {
  const Tensor x = at::randn({64, 3}), target = at::tensor({1.0, -2.0, 0.5}, at::kFloat);
  Tensor w = at::zeros({3}).requires_grad_();
  fulgurite::AdamwTensors tensors;
  for (int i = 0; i < 300; ++i) {
    w.mutable_grad() = Tensor();
    (x.mv(w) - x.mv(target)).square().mean().backward();
    const at::NoGradGuard no_grad;
    if (i == 0) tensors = lists({w});
    tensors.grads = {w.grad()};
    const auto [found_inf, norm_sq, first_bad] = fulgurite::grad_stats(tensors.grads);
    REQUIRE(first_bad.item<int64_t>() == -1);
    fulgurite::AdamwOptions options;
    options.found_inf = found_inf;
    options.grad_multiplier = fulgurite::clip_multiplier(norm_sq, 1.0);
    fulgurite::adamw_(tensors, kHyper, {0}, options);
  }
  CHECK(w.allclose(target, 1e-2, 1e-2));
  CHECK(tensors.steps[0].item<float>() == 300);
}

TEST_CASE("an overflow leaves everything and lowers the scale") {
  const at::NoGradGuard no_grad;
  const Tensor w = at::randn({5}), before = w.clone();
  w.mutable_grad() = at::full({5}, std::numeric_limits<float>::infinity());
  const fulgurite::AdamwTensors tensors = lists({w});
  fulgurite::AdamwOptions options;
  options.found_inf = std::get<0>(fulgurite::grad_stats(tensors.grads));
  fulgurite::adamw_(tensors, kHyper, {0}, options);
  CHECK(w.equal(before));
  CHECK(tensors.steps[0].item<float>() == 0);

  const Tensor scale = at::full({}, 8.0f), tracker = at::zeros({}, at::kInt),
               hysteresis = at::full({}, 1, at::kInt), counters = at::zeros({4}, at::kLong);
  fulgurite::update_scale_(scale, tracker, hysteresis, counters, *options.found_inf);
  CHECK(scale.item<float>() == 4);
  CHECK(counters.equal(at::tensor({0, 1, 1, 1}, at::kLong)));
}

TEST_CASE("8-bit states and stochastic rounding in C++") {
  const at::NoGradGuard no_grad;
  const Tensor w = at::randn({600}).to(at::kBFloat16), before = w.clone();
  fulgurite::Adamw8bitTensors tensors;
  tensors.params = {w};
  tensors.grads = {at::randn({600})};
  tensors.exp_avg_codes = {at::full({600}, 127, at::kByte)};
  tensors.exp_avg_sq_codes = {at::zeros({600}, at::kByte)};
  tensors.exp_avg_scales = {at::zeros({3})};
  tensors.exp_avg_sq_scales = {at::zeros({3})};
  tensors.steps = {at::zeros({})};
  fulgurite::Adamw8bitOptions options;
  options.seed = at::tensor({7, 1}, at::kLong);
  options.keys = {3};
  fulgurite::adamw_8bit_(tensors, kHyper, {0}, options);
  CHECK_FALSE(w.equal(before));
  CHECK(tensors.exp_avg_scales[0].gt(0).all().item<bool>());
  CHECK(tensors.steps[0].item<float>() == 1);
}

TEST_CASE("split masters come back") {
  const Tensor master = at::randn({100});
  const auto [high, low] = fulgurite::split_master(master);
  CHECK(fulgurite::join_master(high, low).equal(master));
}
