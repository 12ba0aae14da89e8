// Linear attention on the CPU, torch side.
#include "common/dtype.h"
#include "common/fresh.h"
#include "common/offsets.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"
#include "linear/cpu/kernels/linear_params.h"
#include "linear/linear_attention.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(linear_linear_attention, linear_attention, LinearAttentionTaskFn);
FULGURITE_KERNEL(linear_linear_attention, linear_attention_layout, LinearAttentionLayoutFn);
FULGURITE_KERNEL(linear_linear_attention_backward, linear_attention_backward,
                 LinearAttentionBackwardTaskFn);
FULGURITE_KERNEL(linear_linear_attention_backward, linear_attention_backward_layout,
                 LinearAttentionBackwardLayoutFn);
FULGURITE_KERNEL(linear_linear_attention_sums, linear_attention_decay_sums, LinearAttentionSumsFn);
FULGURITE_KERNEL(linear_linear_attention_sums, linear_attention_bonus_sums, LinearAttentionSumsFn);
FULGURITE_KERNEL(linear_linear_attention_sums, linear_attention_query_sums, LinearAttentionSumsFn);
FULGURITE_KERNEL(linear_linear_attention_sums, linear_attention_key_sums, LinearAttentionSumsFn);

namespace {

/// Tasks from which on heads alone keep the threads busy: what they share is not computed again for parts of their columns.
constexpr int64_t kEnoughTasks = 6;
/// Columns, or features, of a part are a multiple of this.
constexpr int64_t kLeastPart = kFeatureUnit;

/// Numbers of each of `heads` parts, so that there are enough tasks where a number has several.
int64_t part_of(int64_t numbers, int64_t heads) {
  const int64_t parts = ceil_div(kEnoughTasks, std::max<int64_t>(heads, 1));
  return ceil_div(ceil_div(std::max<int64_t>(numbers, 1), parts), kLeastPart) * kLeastPart;
}

Heads heads(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}
Heads heads(const OptionalTensor& t) { return t ? heads(*t) : Heads{}; }
/// (sequences,H,D) as (sequences,H,D,1).
Heads norms(const OptionalTensor& t) { return t ? heads(t->unsqueeze(3)) : Heads{}; }

bool in_float32(const Tensor& t) { return t.scalar_type() == at::kFloat; }

/// (H), (B,H,N) or (B,H,N,D)
HeadsInput decays(const OptionalTensor& t) {
  if (!t) return {};
  const void* const data = t->const_data_ptr();
  if (t->dim() == 1) return {{data, 0, t->stride(0), 0, 0}, in_float32(*t)};
  return {{data, t->stride(0), t->stride(1), t->stride(2), t->dim() == 4 ? t->stride(3) : 0},
          in_float32(*t)};
}
/// (H,D)
HeadsInput bonus(const OptionalTensor& t) {
  if (!t) return {};
  return {{t->const_data_ptr(), 0, t->stride(0), 0, t->stride(1)}, in_float32(*t)};
}

/// The sequences of a batch or a pack, whose offsets are checked here for the operator `op`.
class LinearSequences {
 public:
  LinearSequences(const char* op, const LinearAttentionArgs& a)
      : grid_(chunk_grid(a.per_feature(), a.exclusive_chunk)) {
    const int64_t N = a.query.size(2);
    covered_ = N;
    if (!a.cu_seqlens) {
      for (int64_t b = 0; b < a.query.size(0); ++b) add(b, 0, N, a.key.size(2));
      return;
    }
    const std::vector<int64_t> offsets = read_offsets(op, "cu_seqlens", *a.cu_seqlens, N);
    covered_ = offsets.back();
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      const int64_t length = offsets[s + 1] - offsets[s];
      add(0, offsets[s], length, length);
    }
  }
  int64_t count() const { return static_cast<int64_t>(spans_.size()); }
  int64_t blocks() const { return blocks_; }
  const ChunkGrid& grid() const { return grid_; }
  const LinearSpan* spans() const { return spans_.data(); }
  /// Positions past the last sequence belong to nobody.
  void clear_tail(const Tensor& t) const {
    if (covered_ < t.size(2)) t.narrow(2, covered_, t.size(2) - covered_).zero_();
  }

 private:
  void add(int64_t batch, int64_t start, int64_t queries, int64_t keys) {
    spans_.push_back({batch, start, queries, keys, blocks_});
    blocks_ += grid_.blocks(queries);
  }

  ChunkGrid grid_;
  std::vector<LinearSpan> spans_;
  int64_t blocks_ = 0, covered_;
};

void describe(LinearAttentionProblem& p, const LinearAttentionArgs& a,
              const LinearSequences& sequences) {
  p.dtype = kernel_dtype(a.query.scalar_type());
  p.B = a.query.size(0);
  p.H = a.value.size(1);
  p.Hk = a.query.size(1);
  p.N = a.query.size(2);
  p.M = a.key.size(2);
  p.D = a.query.size(3);
  p.Dv = a.value.size(3);
  p.scale = a.scale;
  p.eps = a.eps;
  p.causal = a.causal;
  p.normalize = a.normalize;
  p.decay = !a.log_decay      ? DecayKind::kNone
            : a.per_feature() ? DecayKind::kFeature
                              : DecayKind::kPosition;
  p.grid = sequences.grid();
  p.query = heads(a.query);
  p.key = heads(a.key);
  p.value = heads(a.value);
  p.log_decay = decays(a.log_decay);
  p.bonus = bonus(a.bonus);
  p.initial_state = heads(a.initial_state);
  p.initial_norm = norms(a.initial_norm);
  p.spans = sequences.spans();
  p.sequences = sequences.count();
}

/// Multiplications of a call: the state read and written, and the pairs of its chunks.
int64_t products(const LinearAttentionProblem& p) {
  return p.B * p.H * std::max(p.N, p.M) * (2 * p.D * p.Dv + p.grid.chunk * (p.D + p.Dv)) +
         p.sequences * p.H * p.D * p.Dv;
}

/// The forward, with what the backward will want where there is room for it.
LinearAttentionArgs::Result attend(const LinearAttentionArgs& a, Tensor* kept,
                                   Tensor* denominators) {
  const LinearAttentionShape s = check_linear_attention(a);
  const LinearSequences sequences(LinearAttentionArgs::kName, a);
  const auto wide = accumulate_options(a.query);
  Tensor out = on_huge_pages(at::empty_symint(s.out(), a.query.options()));
  sequences.clear_tail(out);
  Tensor state = at::empty_symint(s.state(), wide);
  Tensor norm = a.normalize ? at::empty_symint(s.norm(), wide) : at::zeros_symint(s.norm(), wide);
  LinearAttentionParams p{};
  describe(p, a, sequences);
  p.out = out.mutable_data_ptr();
  p.state = state.mutable_data_ptr();
  p.norm = norm.mutable_data_ptr();
  if (kept) {
    *kept = on_huge_pages(at::empty_symint(s.kept(a), wide));
    *denominators = at::empty_symint(s.denominators(a), wide);
    if (a.normalize) sequences.clear_tail(*denominators);
    const int64_t written = a.causal ? sequences.blocks() : sequences.count();
    kept->narrow(0, written, kept->size(0) - written).zero_();
    p.kept = kept->mutable_data_ptr();
    p.denominators = a.normalize ? denominators->mutable_data_ptr() : nullptr;
  }
  p.range = part_of(p.Dv, p.sequences * p.H);
  const int64_t tasks = p.sequences * p.H * std::max<int64_t>(ceil_div(p.Dv, p.range), 1);
  run_kernel(linear_attention_kernel, linear_attention_layout_kernel, p, {tasks, products(p)});
  return {out, state, norm};
}

LinearAttentionArgs::Result linear_attention_cpu(const LinearAttentionArgs& args) {
  return attend(args, nullptr, nullptr);
}

LinearAttentionForwardArgs::Result linear_attention_forward_cpu(
    const LinearAttentionForwardArgs& args) {
  Tensor kept, denominators;
  const auto [out, state, norm] = attend(args, &kept, &denominators);
  return {out, state, norm, kept, denominators};
}

/// Sums over parts of the backward, and the gradients that they become.
class LinearSums {
 public:
  LinearSums(LinearAttentionBackwardParams& p, const LinearAttentionBackwardArgs& args) : p_(p) {
    const auto wide = accumulate_options(args.forward.query);
    const auto& wanted = args.output_mask;
    if (wanted[kLinearLogDecay] && p.decay == DecayKind::kPosition) {
      decays_ = at::zeros({p.units(), p.B, p.H, p.N}, wide);
      p.decay_sums = decays_.mutable_data_ptr();
    }
    if (wanted[kLinearBonus]) {
      bonus_ = at::empty({p.sequences, p.H, p.D}, wide);
      p.bonus_sums = bonus_.mutable_data_ptr();
    }
    // A group's heads are added in the gradient itself where that is wide enough.
    const bool narrow = args.forward.query.scalar_type() != wide.dtype().toScalarType();
    const int64_t parts = p.group_parts();
    p.query_sums = p.grad_query;
    p.key_sums = p.grad_key;
    if (parts <= 1 && (!narrow || p.H == p.Hk)) return;
    // What no sequence has is not written, but added.
    if (wanted[kLinearQuery]) p.query_sums = place(query_, {parts, p.B, p.Hk, p.N, p.D}, wide);
    if (wanted[kLinearKey]) p.key_sums = place(key_, {parts, p.B, p.Hk, p.M, p.D}, wide);
  }
  /// Sums of nothing have no pointer, but are zeros.
  void add() {
    if (decays_.defined())
      run_rows(linear_attention_decay_sums_kernel, p_, p_.decay_of_heads ? p_.H : p_.B * p_.H, 1,
               decays_.numel());
    if (bonus_.defined()) run_rows(linear_attention_bonus_sums_kernel, p_, p_.H, 8, bonus_.numel());
    if (p_.group_parts() <= 1) return;
    if (query_.defined())
      run_rows(linear_attention_query_sums_kernel, p_, p_.B * p_.Hk * p_.N, 64, query_.numel());
    if (key_.defined())
      run_rows(linear_attention_key_sums_kernel, p_, p_.B * p_.Hk * p_.M, 64, key_.numel());
  }

 private:
  static void* place(Tensor& sums, at::IntArrayRef sizes, const at::TensorOptions& wide) {
    sums = at::zeros(sizes, wide);
    return sums.mutable_data_ptr();
  }

  LinearAttentionBackwardParams& p_;
  Tensor decays_, bonus_, query_, key_;
};

LinearAttentionBackwardArgs::Result linear_attention_backward_cpu(
    const LinearAttentionBackwardArgs& args) {
  check_linear_attention_backward(args);
  const LinearAttentionArgs& f = args.forward;
  const auto& wanted = args.output_mask;
  const LinearSequences sequences(LinearAttentionBackwardArgs::kName, f);
  const Tensor kept = args.kept.contiguous(), denominators = args.denominators.contiguous();
  LinearAttentionBackwardParams p{};
  describe(p, f, sequences);
  p.kept = kept.const_data_ptr();
  p.denominators = denominators.const_data_ptr();
  p.out = heads(args.out);
  p.grad_out = heads(args.grad_out);
  p.grad_state = heads(args.grad_state);
  p.grad_norm = norms(args.grad_norm);
  p.decay_of_heads = f.log_decay && f.log_decay->dim() == 1;
  const auto gradient = [&](LinearAttentionInput which, const OptionalTensor& like, void*& place) {
    Tensor grad = fresh_gradient(wanted[which], like, f.query);
    if (!wanted[which]) return grad;
    if (grad.dim() == 4 && which != kLinearInitialState) {
      grad = on_huge_pages(grad);
      sequences.clear_tail(grad);
    }
    if (p.D == 0) grad.zero_();
    place = grad.mutable_data_ptr();
    return grad;
  };
  LinearAttentionBackwardArgs::Result grads{
      gradient(kLinearQuery, f.query, p.grad_query),
      gradient(kLinearKey, f.key, p.grad_key),
      gradient(kLinearValue, f.value, p.grad_value),
      gradient(kLinearLogDecay, f.log_decay, p.grad_log_decay),
      gradient(kLinearBonus, f.bonus, p.grad_bonus),
      gradient(kLinearInitialState, f.initial_state, p.grad_initial_state),
      gradient(kLinearInitialNorm, f.initial_norm, p.grad_initial_norm)};
  if (wanted[kLinearInitialNorm] && !f.normalize) std::get<kLinearInitialNorm>(grads).zero_();
  LinearSums sums(p, args);
  const int64_t groups = p.sequences * p.Hk * p.group_parts();
  if (groups < kEnoughTasks) {
    p.features = part_of(p.D, groups);
    p.values = wanted[kLinearValue] ? part_of(p.Dv, p.sequences * p.H) : 0;
  } else {
    p.features = std::max<int64_t>(p.D, 1);
  }
  run_kernel(linear_attention_backward_kernel, linear_attention_backward_layout_kernel, p,
             {p.feature_tasks() + p.value_tasks(), 3 * products(p)});
  sums.add();
  return grads;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<linear_attention_cpu>(m);
  implement<linear_attention_forward_cpu>(m);
  implement<linear_attention_backward_cpu>(m);
}
