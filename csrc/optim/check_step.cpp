#include "optim/check_step.h"

#include <unordered_set>

#include "common/walk.h"

namespace fulgurite {
namespace {

void check_one_float(const char* op, const char* name, const OptionalTensor& tensor) {
  if (tensor)
    FULGURITE_CHECK_TYPE(tensor->scalar_type() == at::kFloat, "expected ", name,
                         " of dtype float32, got ", tensor->scalar_type());
}

void check_one_element(const char* op, const char* name, const OptionalTensor& tensor,
                       const Tensor& hyper) {
  if (!tensor) return;
  check_place(op, name, *tensor, hyper);
  FULGURITE_CHECK(tensor->sym_numel() == 1, "expected ", name, " of one element, got shape ",
                  tensor->sym_sizes());
}

void check_list_shapes(const char* op, const OperandList& list, const StepArgs& a) {
  for (size_t i = 0; i < list.list.size(); ++i) {
    if (!list.has(i)) continue;
    const Tensor& entry = list.list[i];
    check_entry_place(op, list.name, entry, i, a.hyper);
    FULGURITE_CHECK(entry.sym_sizes() == a.params[i].sym_sizes(), "expected ", list.name, "[", i,
                    "] of params[", i, "]'s shape ", a.params[i].sym_sizes(), ", got ",
                    entry.sym_sizes());
  }
}

void check_distinct(const char* op, TensorList params) {
  std::unordered_set<const void*> seen;
  seen.reserve(2 * params.size());
  for (size_t i = 0; i < params.size(); ++i)
    FULGURITE_CHECK(params[i].numel() == 0 || seen.insert(params[i].const_data_ptr()).second,
                    "expected every parameter once, got params[", i, "] twice");
}

}  // namespace

void check_entry_type(const char* op, bool served, const char* name, TensorList list, size_t i,
                      const char* expected) {
  FULGURITE_CHECK_TYPE(served, "expected ", name, "[", i, "] of dtype ", expected, ", got ",
                       list[i].scalar_type());
}

void check_entry_types(const char* op, const StepArgs& a, OperandLists lists, size_t i) {
  const at::ScalarType param = a.params[i].scalar_type();
  check_entry_type(op, is_served_float(param), "params", a.params, i,
                   "float64, float32, bfloat16 or float16");
  for (const OperandList& list : lists)
    if (const Tensor* const entry = list.entry(i))
      check_entry_type(op, list.serves(param, entry->scalar_type()), list.name, list.list, i,
                       param == at::kDouble ? list.expected_of_float64 : list.expected);
  if (i < a.steps.size())
    check_entry_type(op, a.steps[i].scalar_type() == at::kFloat, "steps", a.steps, i, "float32");
}

void check_single_types(const char* op, const StepArgs& a) {
  FULGURITE_CHECK_TYPE(a.hyper.scalar_type() == at::kDouble,
                       "expected hyper of dtype float64, got ", a.hyper.scalar_type());
  check_one_float(op, "grad_multiplier", a.grad_multiplier);
  check_one_float(op, "found_inf", a.found_inf);
  if (a.seed)
    FULGURITE_CHECK_TYPE(a.seed->scalar_type() == at::kLong, "expected seed of dtype int64, got ",
                         a.seed->scalar_type());
}

void check_length(const char* op, const char* name, size_t length, size_t params, bool optional) {
  FULGURITE_CHECK(length == params || (optional && length == 0), "expected ", name, " of length ",
                  params, optional ? " or 0" : "", ", got ", length);
}

void check_lengths(const char* op, const StepArgs& a, OperandLists lists) {
  const size_t n = a.params.size();
  for (const OperandList& list : lists)
    check_length(op, list.name, list.list.size(), n, list.optional);
  check_length(op, "steps", a.steps.size(), n, false);
  check_length(op, "groups", a.groups.size(), n, false);
  if (a.keys) check_length(op, "keys", a.keys->size(), n, false);
}

void check_entry_place(const char* op, const char* name, const Tensor& tensor, size_t i,
                       const Tensor& hyper) {
  FULGURITE_CHECK(tensor.device() == hyper.device(), "expected ", name, "[", i,
                  "] on hyper's device ", hyper.device(), ", got ", tensor.device());
}

void check_single_shapes(const char* op, const StepArgs& a) {
  check_place(op, "hyper", a.hyper, a.hyper);
  FULGURITE_CHECK(a.hyper.dim() == 2 && a.hyper.sym_size(1) == 6,
                  "expected hyper of shape [groups, 6], got ", a.hyper.sym_sizes());
  check_one_element(op, "grad_multiplier", a.grad_multiplier, a.hyper);
  check_one_element(op, "found_inf", a.found_inf, a.hyper);
  if (a.seed) {
    check_place(op, "seed", *a.seed, a.hyper);
    FULGURITE_CHECK(a.seed->dim() == 1 && a.seed->sym_size(0) == 2,
                    "expected seed of shape [2] (seed, step), got ", a.seed->sym_sizes());
  }
}

void check_shapes(const char* op, const StepArgs& a, OperandLists lists) {
  check_single_shapes(op, a);
  for (size_t i = 0; i < a.params.size(); ++i)
    check_entry_place(op, "params", a.params[i], i, a.hyper);
  for (const OperandList& list : lists) check_list_shapes(op, list, a);
  for (size_t i = 0; i < a.steps.size(); ++i) {
    check_entry_place(op, "steps", a.steps[i], i, a.hyper);
    FULGURITE_CHECK(a.steps[i].sym_numel() == 1, "expected steps[", i,
                    "] of one element, got shape ", a.steps[i].sym_sizes());
  }
}

void check_values(const char* op, const StepArgs& a) {
  for (size_t i = 0; i < a.groups.size(); ++i)
    FULGURITE_CHECK_VALUE(is_group(a.groups[i], a.hyper.sym_size(0)), "expected groups[", i,
                          "] in [0, ", a.hyper.sym_size(0), "), got ", a.groups[i]);
  if (!a.keys) return;
  FULGURITE_CHECK_VALUE(a.seed, "expected seed with keys, got none");
  for (size_t i = 0; i < a.keys->size(); ++i)
    FULGURITE_CHECK_VALUE(is_key((*a.keys)[i]), "expected keys[", i, "] in [0, 2^32), got ",
                          (*a.keys)[i]);
}

void check_overlap(const char* op, const char* name, TensorList list) {
  for (size_t i = 0; i < list.size(); ++i)
    FULGURITE_CHECK(!overlaps_itself(list[i]), "expected ", name, "[", i,
                    "] without overlapping memory, got strides ", list[i].strides(), " with shape ",
                    list[i].sizes());
}

namespace {

/// The columns of hyper.
constexpr struct {
  const char* name;
  bool is_decay;  // a share, below 1
} kHyper[] = {{"lr", false},  {"beta1", true},         {"beta2", true},
              {"eps", false}, {"weight_decay", false}, {"ema_decay", true}};

}  // namespace

void check_hyper_contents(const char* op, const Tensor& hyper) {
  const int64_t row_stride = hyper.stride(0), stride = hyper.stride(1);
  for (int64_t group = 0; group < hyper.size(0); ++group) {
    const double* const row = hyper.const_data_ptr<double>() + group * row_stride;
    for (int k = 0; k < 6; ++k) {
      const auto& [name, is_decay] = kHyper[k];
      const double value = row[k * stride];
      FULGURITE_CHECK(is_decay ? is_beta(value) : is_rate(value), "expected ", name,
                      is_decay ? " in [0, 1)" : " finite and >= 0", " in hyper[", group, "], got ",
                      value);
    }
  }
}

void check_memory(const char* op, const StepArgs& a, OperandLists lists) {
  check_overlap(op, "params", a.params);
  for (const OperandList& list : lists)
    if (list.operand != kGrad) check_overlap(op, list.name, list.list);
  check_distinct(op, a.params);
}

void check_contents(const char* op, const StepArgs& a) {
  check_hyper_contents(op, a.hyper);
  for (size_t i = 0; i < a.steps.size(); ++i) {
    const float step = *a.steps[i].const_data_ptr<float>();
    FULGURITE_CHECK(is_count(step), "expected steps[", i, "] to hold a count, got ", step);
  }
}

}  // namespace fulgurite
