#include "optim/check.h"

#include "optim/check_step.h"

namespace fulgurite {
namespace {

/// Elements that share a scale of 8-bit states.
constexpr int64_t kScaleBlock = 256;

void check_moment_types(const char* op, const AdamwArgs& a, size_t i) {
  const at::ScalarType param = a.params[i].scalar_type();
  const auto check = [&](const char* name, TensorList list) {
    check_entry_type(op, serves_moment(param, list[i].scalar_type()), name, list, i,
                     param == at::kDouble ? "float64 (as params)" : "float32 or bfloat16");
  };
  if (i < a.exp_avgs.size()) check("exp_avgs", a.exp_avgs);
  if (i < a.exp_avg_sqs.size()) check("exp_avg_sqs", a.exp_avg_sqs);
  if (has(a.max_exp_avg_sqs, i)) check("max_exp_avg_sqs", a.max_exp_avg_sqs);
}

void check_extra_types(const char* op, const AdamwArgs& a, size_t i) {
  const at::ScalarType param = a.params[i].scalar_type();
  const bool wide = param == at::kDouble;
  if (has(a.copies, i))
    check_entry_type(op, serves_copy(param, a.copies[i].scalar_type()), "copies", a.copies, i,
                     wide ? "float32 (with float64 params)" : "float32, bfloat16 or float16");
  if (has(a.emas, i))
    check_entry_type(op, serves_ema(param, a.emas[i].scalar_type()), "emas", a.emas, i,
                     wide ? "float64 (as params)" : "float32");
}

}  // namespace

void check_adamw(const AdamwArgs& a) {
  constexpr const char* op = "adamw_";
  for (size_t i = 0; i < a.params.size(); ++i) {
    check_step_entry_types(op, a, i);
    check_moment_types(op, a, i);
    check_extra_types(op, a, i);
  }
  check_step_scalar_types(op, a);

  const size_t n = a.params.size();
  check_step_lengths(op, a);
  check_length(op, "exp_avgs", a.exp_avgs.size(), n, false);
  check_length(op, "exp_avg_sqs", a.exp_avg_sqs.size(), n, false);
  check_length(op, "max_exp_avg_sqs", a.max_exp_avg_sqs.size(), n, !a.amsgrad);
  check_length(op, "copies", a.copies.size(), n, true);
  check_length(op, "emas", a.emas.size(), n, true);
  check_step_shapes(op, a);
  check_list_shapes(op, "exp_avgs", a.exp_avgs, a, false);
  check_list_shapes(op, "exp_avg_sqs", a.exp_avg_sqs, a, false);
  check_list_shapes(op, "max_exp_avg_sqs", a.max_exp_avg_sqs, a, !a.amsgrad);
  check_list_shapes(op, "copies", a.copies, a, true);
  check_list_shapes(op, "emas", a.emas, a, true);
  check_step_values(op, a);
}

void check_adamw_contents(const AdamwArgs& a) {
  constexpr const char* op = "adamw_";
  check_step_contents(op, a);
  check_overlap(op, "exp_avgs", a.exp_avgs);
  check_overlap(op, "exp_avg_sqs", a.exp_avg_sqs);
  check_overlap(op, "max_exp_avg_sqs", a.max_exp_avg_sqs);
  check_overlap(op, "copies", a.copies);
  check_overlap(op, "emas", a.emas);
  if (a.zero_grads) check_overlap(op, "grads", a.grads);
}

void check_adamw_8bit(const Adamw8bitArgs& a) {
  constexpr const char* op = "adamw_8bit_";
  struct States {
    const char* name;
    TensorList list;
  };
  const States codes[] = {{"exp_avg_codes", a.exp_avg_codes},
                          {"exp_avg_sq_codes", a.exp_avg_sq_codes}};
  const States scales[] = {{"exp_avg_scales", a.exp_avg_scales},
                           {"exp_avg_sq_scales", a.exp_avg_sq_scales}};
  for (size_t i = 0; i < a.params.size(); ++i) {
    check_step_entry_types(op, a, i);
    for (const auto& [name, list] : codes)
      if (i < list.size())
        check_entry_type(op, list[i].scalar_type() == at::kByte, name, list, i, "uint8");
    for (const auto& [name, list] : scales)
      if (i < list.size())
        check_entry_type(op, list[i].scalar_type() == at::kFloat, name, list, i, "float32");
  }
  check_step_scalar_types(op, a);

  check_step_lengths(op, a);
  for (const auto& [name, list] : codes)
    check_length(op, name, list.size(), a.params.size(), false);
  for (const auto& [name, list] : scales)
    check_length(op, name, list.size(), a.params.size(), false);
  check_step_shapes(op, a);
  for (const auto& [name, list] : codes) check_list_shapes(op, name, list, a, false);
  for (const auto& [name, list] : scales)
    for (size_t i = 0; i < list.size(); ++i) {
      check_entry_place(op, name, list[i], i, a.hyper);
      const c10::SymInt blocks = (a.params[i].sym_numel() + (kScaleBlock - 1)) / kScaleBlock;
      FULGURITE_CHECK(list[i].dim() == 1 && list[i].sym_size(0) == blocks, "expected ", name, "[",
                      i, "] of shape [", blocks, "] (one scale per 256 elements), got ",
                      list[i].sym_sizes());
    }
  check_step_values(op, a);
}

void check_adamw_8bit_contents(const Adamw8bitArgs& a) {
  constexpr const char* op = "adamw_8bit_";
  check_step_contents(op, a);
  check_overlap(op, "exp_avg_codes", a.exp_avg_codes);
  check_overlap(op, "exp_avg_sq_codes", a.exp_avg_sq_codes);
  check_overlap(op, "exp_avg_scales", a.exp_avg_scales);
  check_overlap(op, "exp_avg_sq_scales", a.exp_avg_sq_scales);
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
