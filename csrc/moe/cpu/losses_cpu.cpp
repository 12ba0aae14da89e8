// Router losses and the selection bias on the CPU, torch side.
#include "common/check.h"
#include "common/dtype.h"
#include "cpu/tasks.h"
#include "moe/check.h"
#include "moe/cpu/tensors.h"
#include "moe/rules/balance.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

namespace fulgurite {

FULGURITE_KERNEL(moe_losses, moe_balance_loss, LossTaskFn);
FULGURITE_KERNEL(moe_losses, moe_balance_loss_backward, LossTaskFn);
FULGURITE_KERNEL(moe_losses, moe_score_sums, LossTaskFn);
FULGURITE_KERNEL(moe_losses, moe_z_loss, LossTaskFn);
FULGURITE_KERNEL(moe_losses, moe_z_loss_backward, LossTaskFn);
FULGURITE_KERNEL(moe_losses, moe_update_bias, UpdateBiasFn);

namespace {

LossParams common_params(const Tensor& logits, const OptionalTensor& token_mask) {
  LossParams p{};
  p.dtype = kernel_dtype(logits.scalar_type());
  p.T = logits.size(0);
  p.E = logits.size(1);
  p.logits = matrix(logits);
  p.token_mask = mask_of(token_mask);
  return p;
}

bool kept(const LossParams& p, int64_t t) { return !p.token_mask.hides(t); }

int64_t kept_tokens(const LossParams& p) {
  int64_t n = 0;
  for (int64_t t = 0; t < p.T; ++t) n += kept(p, t);
  return n;
}

int64_t parts(const LossParams& p) { return ceil_div(p.T, rows_per_task(p.E)); }

void run_rows(Kernel<LossTaskFn>& kernel, const LossParams& p) {
  const int64_t rows = rows_per_task(p.E);
  const auto fn = kernel.get(p.dtype);
  run_tasks(kernel, {parts(p), p.T * p.E * kLogitCost, kRowBuffers * padded_row(p.E) * 8},
            [&](int64_t task, void* scratch) {
              fn(p, task, task * rows, std::min(p.T, (task + 1) * rows), scratch);
            });
}

/// Σ of what the tasks of `kernel` leave, `width` numbers each, in order.
std::vector<double> run_sums(Kernel<LossTaskFn>& kernel, LossParams& p, int64_t width) {
  std::vector<double> partial(static_cast<size_t>(parts(p) * width)),
      sums(static_cast<size_t>(width));
  p.partial = partial.data();
  run_rows(kernel, p);
  for (size_t i = 0; i < partial.size(); ++i) sums[i % sums.size()] += partial[i];
  return sums;
}

Tensor scalar(double value, const Tensor& logits) {
  Tensor loss = at::empty({}, accumulate_options(logits));
  if (loss.scalar_type() == at::kDouble)
    *loss.mutable_data_ptr<double>() = value;
  else
    *loss.mutable_data_ptr<float>() = static_cast<float>(value);
  return loss;
}

double scalar_value(const Tensor& grad) {
  return grad.scalar_type() == at::kDouble ? *grad.const_data_ptr<double>()
                                           : *grad.const_data_ptr<float>();
}

Tensor empty_gradient(const Tensor& logits, bool wanted) {
  return at::empty(wanted ? logits.sizes() : at::IntArrayRef{0},
                   logits.options().memory_format(at::MemoryFormat::Contiguous));
}

// ---- balance losses

/// The loss (moe/rules/balance.h) as Σ_t Σ_e C_e P_te; of the sequence kind, C differs from sequence to sequence.
struct Coefficients {
  std::vector<double> rows;       // (sequences, E)
  std::vector<int32_t> sequence;  // (T), or empty: one row
  double loss = 0;                // of cv2, which is not linear in P
};

Coefficients linear_coefficients(const LossParams& p, const BalanceArgs& args, BalanceKind kind) {
  const int64_t K = args.ids.size(1), counted = counted_choices(kind, K);
  const double share = assignment_share(kind, p.E, K, kept_tokens(p));
  Coefficients c;
  c.rows.assign(static_cast<size_t>(p.E), 0.0);
  const Ids ids(args.ids);
  for (int64_t t = 0; t < p.T; ++t)
    for (int64_t j = 0; kept(p, t) && j < counted; ++j)
      if (const int64_t e = ids(t, j); e >= 0 && e < p.E) c.rows[e] += share;
  return c;
}

Coefficients sequence_coefficients(const LossParams& p, const BalanceArgs& args) {
  constexpr const char* op = "moe_balance_loss";
  const int64_t K = args.ids.size(1);
  const Ids ids(args.ids), sequences(*args.sequence_ids);
  Coefficients c;
  int64_t rows = 0;
  for (int64_t t = 0; t < p.T; ++t) {
    const int64_t s = sequences(t);
    FULGURITE_CHECK(s >= 0 && s < p.T, "expected sequence_ids in [0, ", p.T, "), got ", s);
    c.sequence.push_back(static_cast<int32_t>(s));
    rows = std::max(rows, s + 1);
  }
  std::vector<int64_t> tokens(static_cast<size_t>(rows));
  for (int64_t t = 0; t < p.T; ++t) tokens[c.sequence[t]] += kept(p, t);
  int64_t present = 0;
  for (const int64_t n : tokens) present += n > 0;
  c.rows.assign(static_cast<size_t>(rows * p.E), 0.0);
  for (int64_t t = 0; t < p.T; ++t) {
    if (!kept(p, t)) continue;
    const int64_t s = c.sequence[t];
    const double share = assignment_share(BalanceKind::kSequence, p.E, K, tokens[s], present);
    for (int64_t j = 0; j < K; ++j)
      if (const int64_t e = ids(t, j); e >= 0 && e < p.E) c.rows[s * p.E + e] += share;
  }
  return c;
}

Coefficients cv2_coefficients(LossParams& p) {
  Coefficients c;
  c.rows.assign(static_cast<size_t>(p.E), 0.0);
  if (p.E <= 1 || kept_tokens(p) == 0) return c;
  const std::vector<double> m = run_sums(moe_score_sums_kernel, p, p.E);
  const Cv2 cv2(m.data(), p.E);
  c.loss = cv2.loss();
  for (int64_t e = 0; e < p.E; ++e) c.rows[e] = cv2.coefficient(m[e]);
  return c;
}

Coefficients coefficients(LossParams& p, const BalanceArgs& args) {
  switch (const BalanceKind kind = choice_of(kBalanceKinds, args.kind)) {
    case BalanceKind::kSwitch:
    case BalanceKind::kHf:
    case BalanceKind::kGshard: return linear_coefficients(p, args, kind);
    case BalanceKind::kSequence: return sequence_coefficients(p, args);
    case BalanceKind::kCv2: return cv2_coefficients(p);
  }
  return {};
}

/// Sets up p and returns the loss's coefficients in the accumulation type, rows padded with zeros.
Tensor prepare_balance(LossParams& p, const BalanceArgs& args, Coefficients& c) {
  p.score = choice_of(kScores, args.score);
  p.eps = args.eps;
  c = coefficients(p, args);
  const int64_t padded = padded_row(p.E),
                rows = p.E ? static_cast<int64_t>(c.rows.size()) / p.E : 0;
  Tensor table = at::zeros({rows, padded}, accumulate_options(args.logits));
  for (int64_t s = 0; s < rows; ++s)
    for (int64_t e = 0; e < p.E; ++e) {
      if (table.scalar_type() == at::kDouble)
        table.mutable_data_ptr<double>()[s * padded + e] = c.rows[s * p.E + e];
      else
        table.mutable_data_ptr<float>()[s * padded + e] = static_cast<float>(c.rows[s * p.E + e]);
    }
  p.coefficients = table.const_data_ptr();
  p.sequence = c.sequence.empty() ? nullptr : c.sequence.data();
  return table;
}

double balance_value(LossParams& p, BalanceKind kind, const Coefficients& c) {
  switch (kind) {
    case BalanceKind::kSwitch:
    case BalanceKind::kHf:
    case BalanceKind::kGshard:
    case BalanceKind::kSequence: return run_sums(moe_balance_loss_kernel, p, 1)[0];
    case BalanceKind::kCv2: return c.loss;
  }
  return 0;
}

Tensor balance_cpu(const BalanceArgs& args) {
  check_balance(args);
  LossParams p = common_params(args.logits, args.token_mask);
  Coefficients c;
  const Tensor table = prepare_balance(p, args, c);
  return scalar(balance_value(p, choice_of(kBalanceKinds, args.kind), c), args.logits);
}

Tensor balance_backward_cpu(const BalanceBackwardArgs& backward) {
  check_balance_backward(backward);
  const BalanceArgs& args = backward.forward;
  Tensor grad_logits = empty_gradient(args.logits, backward.output_mask[0]);
  if (!backward.output_mask[0]) return grad_logits;
  LossParams p = common_params(args.logits, args.token_mask);
  Coefficients c;
  const Tensor table = prepare_balance(p, args, c);
  p.grad = scalar_value(backward.grad);
  p.grad_logits = grad_logits.mutable_data_ptr();
  run_rows(moe_balance_loss_backward_kernel, p);
  return grad_logits;
}

// ---- z-loss

Tensor z_loss_cpu(const ZLossArgs& args) {
  check_z_loss(args);
  const auto& [logits, token_mask] = args;
  LossParams p = common_params(logits, token_mask);
  const int64_t tokens = kept_tokens(p);
  return scalar(tokens ? run_sums(moe_z_loss_kernel, p, 1)[0] / static_cast<double>(tokens) : 0.0,
                logits);
}

Tensor z_loss_backward_cpu(const ZLossBackwardArgs& args) {
  check_z_loss_backward(args);
  const auto& [logits, token_mask] = args.forward;
  Tensor grad_logits = empty_gradient(logits, args.output_mask[0]);
  if (!args.output_mask[0]) return grad_logits;
  LossParams p = common_params(logits, token_mask);
  const int64_t tokens = kept_tokens(p);
  p.grad = tokens ? scalar_value(args.grad) / static_cast<double>(tokens) : 0.0;
  p.grad_logits = grad_logits.mutable_data_ptr();
  run_rows(moe_z_loss_backward_kernel, p);
  return grad_logits;
}

// ---- selection bias

void update_bias_cpu(const UpdateBiasArgs& args) {
  check_update_bias(args);
  const auto& [bias, counts, rate, rule, center] = args;
  std::vector<int64_t> load(static_cast<size_t>(counts.size(0)));
  const Ids given(counts);
  for (int64_t e = 0; e < counts.size(0); ++e) load[e] = given(e);
  UpdateBiasProblem p{};
  p.dtype = kernel_dtype(bias.scalar_type());
  p.E = bias.size(0);
  p.bias = bias.mutable_data_ptr();
  p.bias_stride = bias.stride(0);
  p.counts = load.data();
  p.rate = rate;
  p.rule = choice_of(kBiasRules, rule);
  p.center = center;
  const auto fn = moe_update_bias_kernel.get(p.dtype);
  run_tasks(moe_update_bias_kernel, {1, p.E}, [&](int64_t, void*) { fn(p); });
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<balance_cpu>(m);
  implement<balance_backward_cpu>(m);
  implement<z_loss_cpu>(m);
  implement<z_loss_backward_cpu>(m);
  implement<update_bias_cpu>(m);
}
