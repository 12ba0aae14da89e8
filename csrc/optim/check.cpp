#include "optim/check.h"

#include <cmath>
#include <unordered_set>

#include "common/check.h"
#include "common/walk.h"

namespace fulgurite {
namespace {

constexpr const char* op = "adamw_";

bool is_half(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

#define FULGURITE_CHECK_ENTRY_TYPE(cond, list, i, wanted)                                 \
  FULGURITE_CHECK_TYPE(cond, "expected ", #list, "[", i, "] of dtype ", wanted, ", got ", \
                       a.list[i].scalar_type())

void check_lengths(const AdamwArgs& a) {
  const size_t n = a.params.size();
  const auto check = [&](const char* name, size_t size, bool optional) {
    FULGURITE_CHECK(size == n || (optional && size == 0), "expected ", name, " of length ", n,
                    optional ? " or 0" : "", ", got ", size);
  };
  check("grads", a.grads.size(), false);
  check("exp_avgs", a.exp_avgs.size(), false);
  check("exp_avg_sqs", a.exp_avg_sqs.size(), false);
  check("max_exp_avg_sqs", a.max_exp_avg_sqs.size(), !a.amsgrad);
  check("masters", a.masters.size(), true);
  check("copies", a.copies.size(), true);
  check("emas", a.emas.size(), true);
  check("steps", a.steps.size(), false);
  check("groups", a.groups.size(), false);
  if (a.keys) check("keys", a.keys->size(), false);
}

/// Entry i of an optional list is there.
bool has(TensorList list, size_t i) { return i < list.size() && list[i].sym_numel() != 0; }

void check_entry_types(const AdamwArgs& a, size_t i) {
  const at::ScalarType param = a.params[i].scalar_type(), wide = accumulate_type(param);
  FULGURITE_CHECK_ENTRY_TYPE(is_served_float(param), params, i,
                             "float64, float32, bfloat16 or float16");
  if (i < a.grads.size()) {
    const at::ScalarType grad = a.grads[i].scalar_type();
    FULGURITE_CHECK_ENTRY_TYPE(
        param == at::kDouble ? grad == at::kDouble : grad == at::kFloat || is_half(grad), grads, i,
        (param == at::kDouble ? "float64 (as params)" : "float32, bfloat16 or float16"));
  }
  const auto is_moment = [&](at::ScalarType dtype) {
    return dtype == wide || (param != at::kDouble && dtype == at::kBFloat16);
  };
  const char* const moment = param == at::kDouble ? "float64 (as params)" : "float32 or bfloat16";
  if (i < a.exp_avgs.size())
    FULGURITE_CHECK_ENTRY_TYPE(is_moment(a.exp_avgs[i].scalar_type()), exp_avgs, i, moment);
  if (i < a.exp_avg_sqs.size())
    FULGURITE_CHECK_ENTRY_TYPE(is_moment(a.exp_avg_sqs[i].scalar_type()), exp_avg_sqs, i, moment);
  if (has(a.max_exp_avg_sqs, i))
    FULGURITE_CHECK_ENTRY_TYPE(is_moment(a.max_exp_avg_sqs[i].scalar_type()), max_exp_avg_sqs, i,
                               moment);
  if (has(a.masters, i)) {
    const at::ScalarType master = a.masters[i].scalar_type();
    FULGURITE_CHECK_ENTRY_TYPE((master == at::kFloat && param != at::kDouble) ||
                                   (master == at::kShort && param == at::kBFloat16),
                               masters, i,
                               "float32 (or int16 with bfloat16 params; none with float64 params)");
  }
  if (has(a.copies, i)) {
    const at::ScalarType copy = a.copies[i].scalar_type();
    FULGURITE_CHECK_ENTRY_TYPE(
        copy == at::kFloat || (param != at::kDouble && is_half(copy)), copies, i,
        (param == at::kDouble ? "float32 (with float64 params)" : "float32, bfloat16 or float16"));
  }
  if (has(a.emas, i)) FULGURITE_CHECK_ENTRY_TYPE(a.emas[i].scalar_type() == wide, emas, i, wide);
  if (i < a.steps.size())
    FULGURITE_CHECK_ENTRY_TYPE(a.steps[i].scalar_type() == at::kFloat, steps, i, "float32");
}

void check_scalar_type(const char* name, const OptionalTensor& tensor) {
  if (tensor)
    FULGURITE_CHECK_TYPE(tensor->scalar_type() == at::kFloat, "expected ", name,
                         " of dtype float32, got ", tensor->scalar_type());
}

void check_types(const AdamwArgs& a) {
  for (size_t i = 0; i < a.params.size(); ++i) check_entry_types(a, i);
  FULGURITE_CHECK_TYPE(a.hyper.scalar_type() == at::kDouble,
                       "expected hyper of dtype float64, got ", a.hyper.scalar_type());
  check_scalar_type("grad_multiplier", a.grad_multiplier);
  check_scalar_type("found_inf", a.found_inf);
  if (a.seed)
    FULGURITE_CHECK_TYPE(a.seed->scalar_type() == at::kLong, "expected seed of dtype int64, got ",
                         a.seed->scalar_type());
}

void check_entry_place(const char* name, const Tensor& tensor, size_t i, const Tensor& hyper) {
  FULGURITE_CHECK(tensor.layout() == at::kStrided, "expected ", name, "[", i,
                  "] of layout strided, got ", tensor.layout());
  FULGURITE_CHECK(tensor.device() == hyper.device(), "expected ", name, "[", i,
                  "] on hyper's device ", hyper.device(), ", got ", tensor.device());
}

void check_list_shapes(const char* name, TensorList list, const AdamwArgs& a, bool optional) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (optional && !has(list, i)) continue;
    check_entry_place(name, list[i], i, a.hyper);
    FULGURITE_CHECK(list[i].sym_sizes() == a.params[i].sym_sizes(), "expected ", name, "[", i,
                    "] of params[", i, "]'s shape ", a.params[i].sym_sizes(), ", got ",
                    list[i].sym_sizes());
  }
}

void check_one_element(const char* name, const OptionalTensor& tensor, const Tensor& hyper) {
  if (!tensor) return;
  check_place(op, name, *tensor, hyper);
  FULGURITE_CHECK(tensor->sym_numel() == 1, "expected ", name, " of one element, got shape ",
                  tensor->sym_sizes());
}

void check_shapes(const AdamwArgs& a) {
  check_lengths(a);
  check_place(op, "hyper", a.hyper, a.hyper);
  FULGURITE_CHECK(a.hyper.dim() == 2 && a.hyper.sym_size(1) == 6,
                  "expected hyper of shape [groups, 6], got ", a.hyper.sym_sizes());
  check_list_shapes("params", a.params, a, false);
  check_list_shapes("grads", a.grads, a, false);
  check_list_shapes("exp_avgs", a.exp_avgs, a, false);
  check_list_shapes("exp_avg_sqs", a.exp_avg_sqs, a, false);
  check_list_shapes("max_exp_avg_sqs", a.max_exp_avg_sqs, a, !a.amsgrad);
  check_list_shapes("masters", a.masters, a, true);
  check_list_shapes("copies", a.copies, a, true);
  check_list_shapes("emas", a.emas, a, true);
  for (size_t i = 0; i < a.steps.size(); ++i) {
    check_entry_place("steps", a.steps[i], i, a.hyper);
    FULGURITE_CHECK(a.steps[i].sym_numel() == 1, "expected steps[", i,
                    "] of one element, got shape ", a.steps[i].sym_sizes());
  }
  check_one_element("grad_multiplier", a.grad_multiplier, a.hyper);
  check_one_element("found_inf", a.found_inf, a.hyper);
}

}  // namespace

void check_adamw(const AdamwArgs& a) {
  check_types(a);
  check_shapes(a);
  for (size_t i = 0; i < a.groups.size(); ++i)
    FULGURITE_CHECK_VALUE(a.groups[i] >= 0 && a.groups[i] < a.hyper.sym_size(0), "expected groups[",
                          i, "] in [0, ", a.hyper.sym_size(0), "), got ", a.groups[i]);
  FULGURITE_CHECK_VALUE(!a.keys || a.seed, "expected seed with keys, got none");
  FULGURITE_CHECK_SERVED(!a.seed, "seed (stochastic rounding) is not supported yet");
}

namespace {

void check_overlap(const char* name, TensorList list) {
  for (size_t i = 0; i < list.size(); ++i)
    FULGURITE_CHECK(!overlaps_itself(list[i]), "expected ", name, "[", i,
                    "] without overlapping memory, got strides ", list[i].strides(), " with shape ",
                    list[i].sizes());
}

void check_distinct(TensorList params) {
  std::unordered_set<const void*> seen;
  seen.reserve(2 * params.size());
  for (size_t i = 0; i < params.size(); ++i)
    FULGURITE_CHECK(params[i].numel() == 0 || seen.insert(params[i].const_data_ptr()).second,
                    "expected every parameter once, got params[", i, "] twice");
}

void check_hyper(const Tensor& hyper) {
  const int64_t row_stride = hyper.stride(0), stride = hyper.stride(1);
  for (int64_t group = 0; group < hyper.size(0); ++group) {
    const double* const row = hyper.const_data_ptr<double>() + group * row_stride;
    for (const int k : {1, 2}) {
      const double beta = row[k * stride];
      FULGURITE_CHECK(beta >= 0 && beta < 1, "expected beta", k, " in [0, 1) in hyper[", group,
                      "], got ", beta);
    }
  }
}

}  // namespace

void check_adamw_contents(const AdamwArgs& a) {
  check_overlap("params", a.params);
  check_overlap("exp_avgs", a.exp_avgs);
  check_overlap("exp_avg_sqs", a.exp_avg_sqs);
  check_overlap("max_exp_avg_sqs", a.max_exp_avg_sqs);
  check_overlap("masters", a.masters);
  check_overlap("copies", a.copies);
  check_overlap("emas", a.emas);
  if (a.zero_grads) check_overlap("grads", a.grads);
  check_distinct(a.params);
  check_hyper(a.hyper);
  for (size_t i = 0; i < a.steps.size(); ++i) {
    const float step = *a.steps[i].const_data_ptr<float>();
    FULGURITE_CHECK(step >= 0 && step == std::floor(step) && std::isfinite(step), "expected steps[",
                    i, "] to hold a count, got ", step);
  }
}

void check_split_master(const Tensor& master) {
  constexpr const char* op = "split_master";
  FULGURITE_CHECK_TYPE(master.scalar_type() == at::kFloat, "expected master of dtype float32, got ",
                       master.scalar_type());
  check_place(op, "master", master, master);
}

void check_join_master(const Tensor& high, const Tensor& low) {
  constexpr const char* op = "join_master";
  FULGURITE_CHECK_TYPE(high.scalar_type() == at::kBFloat16, "expected high of dtype bfloat16, got ",
                       high.scalar_type());
  FULGURITE_CHECK_TYPE(low.scalar_type() == at::kShort, "expected low of dtype int16, got ",
                       low.scalar_type());
  check_place(op, "high", high, high);
  check_place(op, "low", low, high);
  FULGURITE_CHECK(low.sym_sizes() == high.sym_sizes(), "expected low of high's shape ",
                  high.sym_sizes(), ", got ", low.sym_sizes());
}

}  // namespace fulgurite
