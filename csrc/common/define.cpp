#include "common/define.h"

#include "common/check.h"

namespace fulgurite {
namespace {

/// What tensors without strided memory of plain numbers are dispatched to.
constexpr c10::DispatchKey kRefused[] = {
    c10::DispatchKey::SparseCPU,        c10::DispatchKey::SparseCUDA,
    c10::DispatchKey::SparseMeta,       c10::DispatchKey::SparseCsrCPU,
    c10::DispatchKey::SparseCsrCUDA,    c10::DispatchKey::SparseCsrMeta,
    c10::DispatchKey::QuantizedCPU,     c10::DispatchKey::QuantizedCUDA,
    c10::DispatchKey::QuantizedMeta,    c10::DispatchKey::NestedTensorCPU,
    c10::DispatchKey::NestedTensorCUDA, c10::DispatchKey::NestedTensorMeta,
    c10::DispatchKey::MkldnnCPU,        c10::DispatchKey::AutogradNestedTensor};

/// The operator that was called: what runs in its place while gradients are recorded, _name_forward, is unknown to users.
std::string called(const std::string& name) {
  constexpr std::string_view suffix = "_forward";
  std::string own = name.substr(name.find("::") + 2);
  if (own.starts_with('_') && own.ends_with(suffix))
    own = own.substr(1, own.size() - 1 - suffix.size());
  return own;
}

void check_dense(const char* op, const std::string& name, const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  FULGURITE_CHECK_TYPE(!tensor.is_quantized(), "expected ", name,
                       " of a dtype that is not quantized, got ", tensor.scalar_type());
  FULGURITE_CHECK(!tensor.is_nested(), "expected ", name, " dense, got a nested tensor");
  FULGURITE_CHECK(tensor.layout() == at::kStrided, "expected ", name, " of layout strided, got ",
                  tensor.layout());
}

void refuse(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const std::string name = called(handle.schema().name());
  const char* const op = name.c_str();
  const auto& arguments = handle.schema().arguments();
  const auto values = torch::jit::last(*stack, arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i].name();
    if (values[i].isTensor()) check_dense(op, argument, values[i].toTensor());
    if (!values[i].isTensorList()) continue;
    const auto list = values[i].toTensorVector();
    for (size_t k = 0; k < list.size(); ++k)
      check_dense(op, argument + "[" + std::to_string(k) + "]", list[k]);
  }
  FULGURITE_CHECK_SERVED(false, "expected dense tensors of a layout that is known");
}

void refuse_cuda(const c10::OperatorHandle& handle, torch::jit::Stack*) {
  const std::string op = called(handle.schema().name());
  FULGURITE_CHECK_SERVED(false,
                         FULGURITE_WITH_CUDA ? "has no CUDA kernel yet" : "built without CUDA");
}

}  // namespace

void define(torch::Library& m, const std::string& schema, OnCuda on_cuda) {
  m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  const std::string name = schema.substr(0, schema.find('('));
  if (on_cuda == OnCuda::kNothing || (on_cuda == OnCuda::kKernels && !FULGURITE_WITH_CUDA))
    m.impl(name.c_str(),
           torch::dispatch(c10::DispatchKey::CUDA,
                           torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>()));
  for (const c10::DispatchKey key : kRefused)
    m.impl(name.c_str(),
           torch::dispatch(key, torch::CppFunction::makeFromBoxedFunction<&refuse>()));
}

}  // namespace fulgurite
