// Expert choice on the CPU, torch side: scores by the kernel, then each expert selects and sorts its tokens.
#include "moe/cpu/kernels/expert_choice.h"

#include "common/check.h"
#include "common/dtype.h"
#include "common/fresh.h"
#include "cpu/tasks.h"
#include "moe/cpu/counting_sort.h"
#include "moe/cpu/tensors.h"
#include "moe/expert_choice.h"
#include "moe/rules/order.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

namespace fulgurite {

FULGURITE_KERNEL(moe_expert_choice, moe_expert_choice, ExpertChoiceFn);
FULGURITE_KERNEL(moe_expert_choice, moe_expert_choice_backward, ExpertChoiceFn);

namespace {

ExpertChoiceParams common_params(const Tensor& logits) {
  ExpertChoiceParams p{};
  p.dtype = kernel_dtype(logits.scalar_type());
  p.T = logits.size(0);
  p.E = logits.size(1);
  p.logits = matrix(logits);
  return p;
}

void run_tokens(Kernel<ExpertChoiceFn>& kernel, const ExpertChoiceParams& p) {
  const int64_t rows = rows_per_task(p.E);
  const auto fn = kernel.get(p.dtype);
  run_tasks(kernel,
            {ceil_div(p.T, rows), p.T * p.E * kLogitCost,
             kExpertChoiceRows * padded_row(p.E) * int64_t{sizeof(double)}},
            [&](int64_t task, void* scratch) {
              fn(p, task * rows, std::min(p.T, (task + 1) * rows), scratch);
            });
}

/// The tokens of one expert, by falling score.
template <class T>
void take_tokens(const T* scores, int64_t tokens, int64_t capacity, T* weights,
                 int32_t* token_ids) {
  std::vector<Candidate> taken = select_first(tokens, capacity, [scores](int64_t t) {
    return Candidate{scores[t], static_cast<int32_t>(t)};
  });
  std::sort(taken.begin(), taken.end(), goes_before);
  for (int64_t c = 0; c < capacity; ++c) {
    token_ids[c] = taken[c].index;
    weights[c] = scores[taken[c].index];
  }
}

template <class Run>
void for_experts(const ExpertChoiceParams& p, const Run& run) {
  at::parallel_for(0, p.E, experts_per_thread(p.T * p.E, p.E), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) run(e);
  });
}

template <class T>
void take_all(const ExpertChoiceParams& p, int64_t capacity, Tensor& weights, Tensor& token_ids) {
  T* const w = weights.mutable_data_ptr<T>();
  int32_t* const ids = token_ids.mutable_data_ptr<int32_t>();
  for_experts(p, [&](int64_t e) {
    take_tokens(static_cast<const T*>(p.scores) + e * p.T, p.T, capacity, w + e * capacity,
                ids + e * capacity);
  });
}

ExpertChoiceResult expert_choice_cpu(const ExpertChoiceArgs& args) {
  check_expert_choice(args);
  const Tensor& logits = args.logits;
  const int64_t capacity = args.capacity.expect_int();
  ExpertChoiceParams p = common_params(logits);
  const auto options = logits.options();
  const at::ScalarType accumulate = accumulate_type(logits.scalar_type());
  Tensor weights = at::empty({p.E, capacity}, options.dtype(accumulate));  // (E,C)
  Tensor token_ids = at::empty({p.E, capacity}, options.dtype(at::kInt));  // (E,C)
  Tensor scores = at::empty({p.E, p.T}, options.dtype(accumulate));        // (E,T)
  p.scores = scores.mutable_data_ptr();
  run_tokens(moe_expert_choice_kernel, p);
  if (accumulate == at::kDouble)
    take_all<double>(p, capacity, weights, token_ids);
  else
    take_all<float>(p, capacity, weights, token_ids);
  return {weights, token_ids};
}

/// Adds the gradients of the weights where their scores are, in order, and marks the tokens.
template <class T>
void scatter(const Tensor& grad_weights, const Tensor& token_ids, Tensor& grad_scores,
             std::vector<uint8_t>& taken) {
  constexpr const char* op = "_moe_route_expert_choice_backward";
  const int64_t E = token_ids.size(0), tokens = grad_scores.size(0);
  const Tensor grads = grad_weights.contiguous();
  const T* from = grads.const_data_ptr<T>();
  T* const to = grad_scores.mutable_data_ptr<T>();
  const Ids ids(token_ids);
  for (int64_t e = 0; e < E; ++e)
    for (int64_t c = 0; c < token_ids.size(1); ++c) {
      const int64_t t = ids(e, c);
      FULGURITE_CHECK(t >= 0 && t < tokens, "expected token_ids in [0, ", tokens, "), got ", t);
      to[t * E + e] += *from++;
      taken[t] = 1;
    }
}

Tensor expert_choice_backward_cpu(const ExpertChoiceBackwardArgs& args) {
  check_expert_choice_backward(args);
  const auto& [grad_weights, logits, token_ids, output_mask] = args;
  Tensor grad = fresh_gradient(output_mask[0], logits);
  if (!output_mask[0]) return grad;
  ExpertChoiceParams p = common_params(logits);
  Tensor grad_scores =
      at::zeros(logits.sizes(), logits.options().dtype(grad_weights.scalar_type()));  // (T,E)
  std::vector<uint8_t> taken(static_cast<size_t>(p.T));
  if (grad_weights.scalar_type() == at::kDouble)
    scatter<double>(grad_weights, token_ids, grad_scores, taken);
  else
    scatter<float>(grad_weights, token_ids, grad_scores, taken);
  p.taken = taken.data();
  p.grad_scores = grad_scores.const_data_ptr();
  p.grad_logits = grad.mutable_data_ptr();
  run_tokens(moe_expert_choice_backward_kernel, p);
  return grad;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<expert_choice_cpu>(m);
  implement<expert_choice_backward_cpu>(m);
}
