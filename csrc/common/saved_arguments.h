// What an autograd function keeps of its operator's arguments (common/arguments.h), and which of them want a gradient.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include "common/arguments.h"
#include "common/autograd.h"

namespace fulgurite {

template <class Args>
inline constexpr size_t kInputs = std::tuple_size_v<decltype(std::declval<const Args&>().inputs())>;

/// An autograd function is applied to the inputs and to the struct, whose own are of no interest to it: F::apply(inputs…, args).
template <class F, class Args>
auto apply(const Args& args) {
  return std::apply([&](const auto&... input) { return F::apply(input..., args); }, args.inputs());
}

/// The operator where nothing is to be recorded.
template <class Args>
typename Args::Result below_autograd(const Args& args) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return call(args);
}

/// Masks, ids and biases may come from under inference_mode, where autograd saves nothing: a copy it does save.
inline Tensor savable(const Tensor& tensor) {
  return tensor.defined() && tensor.is_inference() ? tensor.clone() : tensor;
}

/// Numbers and strings into ctx, tensors to `tensors`, which the caller saves.
template <Arguments Args>
void save(torch::autograd::AutogradContext* ctx, const Args& args,
          torch::autograd::variable_list& tensors) {
  c10::impl::GenericList numbers(c10::AnyType::get());
  const auto keep = [&](const auto& member) {
    using M = std::decay_t<decltype(member)>;
    if constexpr (std::is_same_v<M, Tensor>)
      tensors.push_back(savable(member));
    else if constexpr (std::is_same_v<M, OptionalTensor>)
      tensors.push_back(savable(member.value_or(Tensor())));
    else if constexpr (std::is_same_v<M, std::string_view>)
      numbers.emplace_back(std::string(member));
    else
      numbers.emplace_back(member);
  };
  std::apply([&](const auto&... member) { (keep(member), ...); }, flat(args));
  ctx->saved_data["arguments"] = numbers;
}

/// The arguments again, strings as views of what ctx holds; their tensors stand in `tensors` from `next` on.
template <Arguments Args>
Args saved_arguments(torch::autograd::AutogradContext* ctx,
                     const torch::autograd::variable_list& tensors, size_t next) {
  Args args{};
  const c10::ArrayRef<c10::IValue> numbers = ctx->saved_data["arguments"].toListRef();
  size_t number = 0;
  const auto restore = [&](auto& member) {
    using M = std::decay_t<decltype(member)>;
    if constexpr (std::is_same_v<M, Tensor>)
      member = tensors[next++];
    else if constexpr (std::is_same_v<M, OptionalTensor>)
      member = if_defined(tensors[next++]);
    else if constexpr (std::is_same_v<M, std::string_view>)
      member = numbers[number++].toStringRef();
    else
      member = numbers[number++].template to<M>();
  };
  std::apply([&](auto&... member) { (restore(member), ...); }, flat(args));
  return args;
}

/// Which inputs want a gradient. Autograd numbers its edges over the tensors that were given.
template <class Args>
std::array<bool, kInputs<Args>> wanted_inputs(torch::autograd::AutogradContext* ctx,
                                              const Args& args) {
  std::array<bool, kInputs<Args>> wanted{};
  size_t edge = 0, i = 0;
  const auto ask = [&](const auto& input) {
    if constexpr (std::is_same_v<std::decay_t<decltype(input)>, Tensor>)
      wanted[i++] = ctx->needs_input_grad(edge++);
    else
      wanted[i++] = input.has_value() && ctx->needs_input_grad(edge++);
  };
  std::apply([&](const auto&... input) { (ask(input), ...); }, args.inputs());
  return wanted;
}

/// Whether a call is worth an autograd function: an input wants a gradient.
template <class Args>
bool is_recorded(const Args& args) {
  const auto wants = [](const OptionalTensor& t) {
    return t && t->defined() && t->requires_grad();
  };
  return at::GradMode::is_enabled() &&
         std::apply([&](const auto&... input) { return (wants(input) || ...); }, args.inputs());
}

/// Whether an input has a tangent (forward mode).
template <class Args>
bool has_tangent(const Args& args) {
  const auto moves = [](const OptionalTensor& t) {
    return t && t->defined() && t->_fw_grad(/*level=*/0).defined();
  };
  return std::apply([&](const auto&... input) { return (moves(input) || ...); }, args.inputs());
}

/// An operator's gradients as an autograd function returns them: undefined where nobody asked, and one more for the struct.
template <size_t N, class... Gradient>
torch::autograd::variable_list gradient_list(const std::tuple<Gradient...>& gradients,
                                             const std::array<bool, N>& wanted) {
  static_assert(sizeof...(Gradient) == N);
  torch::autograd::variable_list list = std::apply(
      [](const auto&... t) { return torch::autograd::variable_list{t..., Tensor()}; }, gradients);
  for (size_t i = 0; i < N; ++i)
    if (!wanted[i]) list[i] = Tensor();
  return list;
}

}  // namespace fulgurite
