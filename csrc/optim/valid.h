// What a call of AdamW may be: every rule is one predicate here. The checks name it in an error; the
// pass over plain tensors (cpu/call.h) asks it while it describes them.
#pragma once

#include <array>
#include <cmath>

#include "common/check.h"
#include "optim/args.h"
#include "optim/rules/operands.h"

namespace fulgurite {

inline bool is_half(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

// dtypes that go with a parameter's.
inline bool serves_grad(at::ScalarType param, at::ScalarType grad) {
  return param == at::kDouble ? grad == at::kDouble : grad == at::kFloat || is_half(grad);
}
inline bool serves_moment(at::ScalarType param, at::ScalarType moment) {
  return moment == accumulate_type(param) || (param != at::kDouble && moment == at::kBFloat16);
}
inline bool serves_master(at::ScalarType param, at::ScalarType master) {
  return (master == at::kFloat && param != at::kDouble) ||
         (master == at::kShort && param == at::kBFloat16);
}
inline bool serves_copy(at::ScalarType param, at::ScalarType copy) {
  return copy == at::kFloat || (param != at::kDouble && is_half(copy));
}
inline bool serves_ema(at::ScalarType param, at::ScalarType ema) {
  return ema == accumulate_type(param);
}
inline bool serves_code(at::ScalarType, at::ScalarType code) { return code == at::kByte; }

/// A list whose entries are paired with params, element by element.
struct OperandList {
  AdamwOperand operand;
  const char* name;
  TensorList list;
  bool optional;  // may be empty, and an entry without elements is none
  bool (*serves)(at::ScalarType param, at::ScalarType own);
  const char *expected, *expected_of_float64;
  bool used = true;  // by the kernel

  bool has(size_t i) const { return i < list.size() && !(optional && list[i].sym_numel() == 0); }
  /// Null: the tensor has none.
  const Tensor* entry(size_t i) const { return has(i) ? &list[i] : nullptr; }
  bool is_length(size_t params) const {
    return list.size() == params || (optional && list.empty());
  }
};

inline OperandList grad_list(const StepArgs& a) {
  return {kGrad,
          "grads",
          a.grads,
          false,
          serves_grad,
          "float32, bfloat16 or float16",
          "float64 (as params)"};
}
inline OperandList master_list(const StepArgs& a) {
  constexpr const char* expected =
      "float32 (or int16 with bfloat16 params; none with float64 params)";
  return {kMaster, "masters", a.masters, true, serves_master, expected, expected};
}

inline std::array<OperandList, 7> operand_lists(const AdamwArgs& a) {
  constexpr const char *moment = "float32 or bfloat16", *wide = "float64 (as params)";
  return {{grad_list(a),
           master_list(a),
           {kExpAvg, "exp_avgs", a.exp_avgs, false, serves_moment, moment, wide},
           {kExpAvgSq, "exp_avg_sqs", a.exp_avg_sqs, false, serves_moment, moment, wide},
           {kMaxExpAvgSq, "max_exp_avg_sqs", a.max_exp_avg_sqs, !a.amsgrad, serves_moment, moment,
            wide, a.amsgrad},
           {kCopy, "copies", a.copies, true, serves_copy, "float32, bfloat16 or float16",
            "float32 (with float64 params)"},
           {kEma, "emas", a.emas, true, serves_ema, "float32", wide}}};
}

inline std::array<OperandList, 4> operand_lists(const Adamw8bitArgs& a) {
  return {
      {grad_list(a),
       master_list(a),
       {kExpAvg, "exp_avg_codes", a.exp_avg_codes, false, serves_code, "uint8", "uint8"},
       {kExpAvgSq, "exp_avg_sq_codes", a.exp_avg_sq_codes, false, serves_code, "uint8", "uint8"}}};
}

/// What a count of steps can be.
inline bool is_count(float step) {
  return step >= 0 && step == std::floor(step) && std::isfinite(step);
}
inline bool is_beta(double beta) { return beta >= 0 && beta < 1; }
inline bool is_rate(double rate) { return rate >= 0 && std::isfinite(rate); }
/// The row of hyper of a tensor.
template <class Rows>
bool is_group(int64_t group, const Rows& rows) {
  return group >= 0 && group < rows;
}
/// A number of a tensor for stochastic rounding.
inline bool is_key(int64_t key) { return key >= 0 && key < int64_t{1} << 32; }

}  // namespace fulgurite
