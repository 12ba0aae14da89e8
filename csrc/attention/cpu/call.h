// One call of attention on the CPU, batched or over packed sequences: Params with everything that its pointers need to stay
// alive, and the order of the kernels.
#pragma once

#include <vector>

#include "attention/args.h"
#include "attention/cpu/kernels/params.h"
#include "attention/plan.h"
#include "attention/score_rule.h"
#include "common/ceil_div.h"
#include "cpu/isa.h"

namespace fulgurite {

class QueryParts;
struct TaskSpace;

/// Tasks of the backward that share a bias over the batch: each holds a part of dbias, so few.
inline constexpr int64_t kBiasParts = 4;

/// Strides of (batch, head, row, column).
struct HeadStrides {
  int64_t batch, head, row, column;
};
Tensor4 head_rows(const OptionalTensor& tensor, const HeadStrides& strides);

/// (B,H,N,D), and (B,H,N) with width 1.
HeadStrides batch_strides(const Tensor& tensor);
/// (T,H,D) of packed sequences.
HeadStrides packed_strides(const Tensor& tensor);
/// (H,T) of packed sequences: lse and its gradient.
HeadStrides packed_lse_strides(const Tensor& tensor);

/// Of a tensor that the operator made, contiguous in its last dimension.
inline Output4 head_output(const Tensor& tensor, const HeadStrides& s) {
  return {tensor.mutable_data_ptr(), {s.batch, s.head, s.row}};
}

/// Lets the tasks of a call count their tiles for `explain`.
void count_tiles(KernelInfo& kernel, AttentionParams& params);
void run_counted(Kernel<AttentionTaskFn>& kernel, AttentionParams& params, const TaskSpace& space);
/// Of philox on the host, whose contents are checked for the operator `op`.
DropoutRule dropout_rule(const char* op, double dropout_p, const OptionalTensor& philox);

enum class Pass { kForward, kBackward };

class AttentionCall {
 public:
  AttentionParams p{};

  /// query, key and value as (B,H,·,·), or (T,H,·) with `packed`; `widest` bounds every distance between positions.
  AttentionCall(const char* op, Pass pass, const Tensor& query, const Tensor& key,
                const Tensor& value, bool packed, int64_t widest, const ScoreArgs& scores);

  void add_batch(int64_t B, int64_t N, int64_t M) {
    plan_->add_batch(B, N, M);
    plan_->describe(p);
  }
  void add_sequence(int64_t query_start, int64_t N, int64_t key_start, int64_t M) {
    plan_->add_sequence(query_start, N, key_start, M);
    plan_->describe(p);
  }
  void add_splits(int64_t N, int64_t M, int64_t split_keys) {
    plan_->add_splits(N, M, split_keys);
    plan_->describe(p);
  }
  int64_t pairs() const { return plan_->pairs(); }
  int64_t products() const { return pairs() * p.Hq * (p.D + p.Dv + 1); }

  /// The kernel's sums are in the accumulation type; backward() leaves them in `grad`.
  void want_sink(const Tensor& grad);

  /// p.out and p.lse from the inputs.
  void forward();
  /// The gradients that p has places for.
  void backward();

 private:
  void* keep(Tensor tensor);
  void add_packed(void*& pointer, int64_t bytes_per_key);
  void pack();
  bool forward_packs_in_tasks() const;
  void add_delta();
  void normalise();
  void gradients();
  void run_with_parts(QueryParts& parts, const TaskSpace& space);
  bool tasks_own_bias() const;
  void add_bias_parts();
  void grad_bias();
  int64_t bias_elements() const;
  int64_t packed_blocks() const { return p.key_blocks * p.Hkv; }

  at::TensorOptions options_;  // of the accumulation type
  AttentionLayout layout_{};
  std::optional<AttentionPlan> plan_;  // made once the layout is known
  std::vector<Tensor> buffers_;
  Tensor grad_sink_, grad_sink_wide_;
};

}  // namespace fulgurite
