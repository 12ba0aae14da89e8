// An operator's arguments stand once: as the members of a struct, in the order of its schema.
//
//   struct ScaleArgs {
//     static constexpr const char* kName = "scale";
//     using Result = Tensor;
//     Tensor x;
//     double factor;
//     FULGURITE_MEMBERS(x, factor)
//   };
//
// From the list follow the dispatcher's signature (Signature<ScaleArgs>), the call (call(ScaleArgs{x, 2.0})), the function to register
// for one that takes the struct (implement<f>(library)), and what an autograd function keeps for its backward (saved_arguments.h).
// A member may be a struct with a list of its own, or an array of optional tensors: they are spliced in. A second list names the
// members that have a gradient, in the order of the gradients: FULGURITE_INPUTS(x).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/SymInt.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#define FULGURITE_MEMBERS(...)                     \
  auto members() { return std::tie(__VA_ARGS__); } \
  auto members() const { return std::tie(__VA_ARGS__); }
#define FULGURITE_INPUTS(...) \
  auto inputs() const { return std::tie(__VA_ARGS__); }

namespace fulgurite {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

template <class T>
concept Arguments = requires(T& t) { t.members(); };

template <class T>
inline constexpr bool kIsTensorArray = false;
template <size_t N>
inline constexpr bool kIsTensorArray<std::array<OptionalTensor, N>> = true;

/// References to all members, those of nested structs too.
template <class T>
auto flat(T& t) {
  if constexpr (Arguments<T>)
    return std::apply([](auto&... member) { return std::tuple_cat(flat(member)...); }, t.members());
  else if constexpr (kIsTensorArray<std::remove_const_t<T>>)
    return std::apply([](auto&... entry) { return std::tie(entry...); }, t);
  else
    return std::tie(t);
}

// ---- the dispatcher's view

template <class T>
struct PassedAs {
  using type = T;
};
template <class T>
  requires std::is_same_v<T, Tensor> || std::is_same_v<T, OptionalTensor> ||
           std::is_same_v<T, c10::List<bool>>
struct PassedAs<T> {
  using type = const T&;
};

template <class Result, class Members>
struct SignatureOf;
template <class Result, class... Member>
struct SignatureOf<Result, std::tuple<Member&...>> {
  using type = Result(typename PassedAs<Member>::type...);
};
template <class Args>
using Signature =
    typename SignatureOf<typename Args::Result, decltype(flat(std::declval<Args&>()))>::type;

/// Calls the operator through the dispatcher.
template <Arguments Args>
typename Args::Result call(const Args& args) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow((std::string("fulgurite::") + Args::kName).c_str(), "")
          .template typed<Signature<Args>>();
  return std::apply([](const auto&... member) { return op.call(member...); }, flat(args));
}

/// The struct from its members' values, in order.
template <Arguments Args, class... Value>
Args arguments_of(const Value&... value) {
  Args args{};
  flat(args) = std::tie(value...);
  return args;
}

template <auto f, class Args, class S = Signature<Args>>
struct FromSchema;
template <auto f, class Args, class Result, class... Passed>
struct FromSchema<f, Args, Result(Passed...)> {
  // NOLINTNEXTLINE(performance-unnecessary-value-param): the dispatcher passes a SymInt by value.
  static Result run(Passed... passed) { return f(arguments_of<Args>(passed...)); }
};

template <class F>
struct ArgumentsOf;
template <class Result, class Args>
struct ArgumentsOf<Result (*)(const Args&)> {
  using type = Args;
};

/// Registers f, which takes the struct, as the operator's kernel for the key of m.
template <auto f>
void implement(torch::Library& m) {
  using Args = typename ArgumentsOf<decltype(f)>::type;
  m.impl(Args::kName, &FromSchema<f, Args>::run);
}

}  // namespace fulgurite
