#include "optim/check.h"

#include "optim/check_step.h"

namespace fulgurite {
namespace {

/// Elements that share a scale of 8-bit states.
constexpr int64_t kScaleBlock = 256;

struct Scales {
  const char* name;
  TensorList list;
};

std::array<Scales, 2> scale_lists(const Adamw8bitArgs& a) {
  return {{{"exp_avg_scales", a.exp_avg_scales}, {"exp_avg_sq_scales", a.exp_avg_sq_scales}}};
}

void check_scale_shapes(const char* op, const Adamw8bitArgs& a) {
  for (const auto& [name, list] : scale_lists(a))
    for (size_t i = 0; i < list.size(); ++i) {
      check_entry_place(op, name, list[i], i, a.hyper);
      const c10::SymInt blocks = (a.params[i].sym_numel() + (kScaleBlock - 1)) / kScaleBlock;
      FULGURITE_CHECK(list[i].dim() == 1 && list[i].sym_size(0) == blocks, "expected ", name, "[",
                      i, "] of shape [", blocks, "] (one scale per 256 elements), got ",
                      list[i].sym_sizes());
    }
}

}  // namespace

void check_adamw(const AdamwArgs& a) {
  constexpr const char* op = "adamw_";
  const auto lists = operand_lists(a);
  for (size_t i = 0; i < a.params.size(); ++i) check_entry_types(op, a, lists, i);
  check_single_types(op, a);
  check_lengths(op, a, lists);
  check_shapes(op, a, lists);
  check_values(op, a);
}

void check_adamw_memory(const AdamwArgs& a) {
  constexpr const char* op = "adamw_";
  check_memory(op, a, operand_lists(a));
  if (a.zero_grads) check_overlap(op, "grads", a.grads);
}

void check_adamw_contents(const AdamwArgs& a) {
  check_adamw_memory(a);
  check_contents("adamw_", a);
}

void check_adamw_single(const AdamwArgs& a) {
  constexpr const char* op = "adamw_";
  check_single_types(op, a);
  check_single_shapes(op, a);
}

void check_adamw_hyper(const AdamwArgs& a) { check_hyper_contents("adamw_", a.hyper); }

void check_adamw_8bit(const Adamw8bitArgs& a) {
  constexpr const char* op = "adamw_8bit_";
  const auto lists = operand_lists(a);
  for (size_t i = 0; i < a.params.size(); ++i) {
    check_entry_types(op, a, lists, i);
    for (const auto& [name, list] : scale_lists(a))
      if (i < list.size())
        check_entry_type(op, list[i].scalar_type() == at::kFloat, name, list, i, "float32");
  }
  check_single_types(op, a);
  check_lengths(op, a, lists);
  for (const auto& [name, list] : scale_lists(a))
    check_length(op, name, list.size(), a.params.size(), false);
  check_shapes(op, a, lists);
  check_scale_shapes(op, a);
  check_values(op, a);
}

void check_adamw_8bit_memory(const Adamw8bitArgs& a) {
  constexpr const char* op = "adamw_8bit_";
  check_memory(op, a, operand_lists(a));
  for (const auto& [name, list] : scale_lists(a)) check_overlap(op, name, list);
}

void check_adamw_8bit_contents(const Adamw8bitArgs& a) {
  check_adamw_8bit_memory(a);
  check_contents("adamw_8bit_", a);
}

void check_split_master(const SplitMasterArgs& args) {
  constexpr const char* op = "split_master";
  const Tensor& master = args.master;
  FULGURITE_CHECK_TYPE(master.scalar_type() == at::kFloat, "expected master of dtype float32, got ",
                       master.scalar_type());
  check_place(op, "master", master, master);
}

void check_join_master(const JoinMasterArgs& args) {
  constexpr const char* op = "join_master";
  const auto& [high, low] = args;
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
