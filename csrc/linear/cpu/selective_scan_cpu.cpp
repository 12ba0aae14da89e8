// The selective scan on the CPU, torch side.
#include "common/dtype.h"
#include "common/fresh.h"
#include "cpu/huge_pages.h"
#include "cpu/tasks.h"
#include "linear/check.h"
#include "linear/cpu/kernels/params.h"
#include "linear/cpu/tensors.h"

#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(linear_selective_scan, selective_scan, SelectiveScanTaskFn);
FULGURITE_KERNEL(linear_selective_scan, selective_scan_layout, SelectiveScanLayoutFn);
FULGURITE_KERNEL(linear_selective_scan_backward, selective_scan_backward,
                 SelectiveScanBackwardTaskFn);
FULGURITE_KERNEL(linear_selective_scan_backward, selective_scan_backward_layout,
                 SelectiveScanBackwardLayoutFn);
FULGURITE_KERNEL(linear_selective_scan_backward, selective_scan_columns,
                 SelectiveScanBackwardTaskFn);
FULGURITE_KERNEL(linear_selective_scan_backward, selective_scan_columns_layout,
                 SelectiveScanBackwardLayoutFn);
FULGURITE_KERNEL(linear_selective_scan_backward, selective_scan_channels, SelectiveScanChannelsFn);

namespace {

/// An exponential, and what else a state takes.
constexpr int64_t kStateCost = 24;

/// (B,N,L) or (B,G,N,L)
GroupedInput grouped(const Tensor& t) {
  const bool groups = t.dim() == 4;
  return {{{t.const_data_ptr(), t.stride(0), t.stride(-2), t.stride(-1)}, is_float32(t)},
          groups ? t.stride(1) : 0};
}

void describe(SelectiveScanProblem& p, const SelectiveScanArgs& a, const Sequences& sequences) {
  p.dtype = kernel_dtype(a.u.scalar_type());
  p.softplus = a.delta_softplus;
  p.D = a.u.size(1);
  p.L = a.u.size(2);
  p.N = a.A.size(1);
  p.G = a.B.dim() == 4 ? a.B.size(1) : 1;
  p.u = input(a.u);
  p.delta = input(a.delta);
  p.z = input(a.z);
  p.A = of_channels(a.A);
  p.B = grouped(a.B);
  p.C = grouped(a.C);
  p.skip = channels(a.D);
  p.delta_bias = channels(a.delta_bias);
  p.initial_state = signal(a.initial_state);
  p.parts = sequences.pieces();
}

/// The forward, with the states before every block where `kept` has room for them.
SelectiveScanArgs::Result scan(const SelectiveScanArgs& a, Tensor* kept) {
  const SelectiveScanShape s = check_selective_scan(a);
  const Sequences sequences(SelectiveScanArgs::kName, a.u, a.cu_seqlens);
  const auto wide = accumulate_options(a.u);
  Tensor out = on_huge_pages(fresh_like(a.u));
  sequences.clear_tail(out);
  SelectiveScanParams p{};
  describe(p, a, sequences);
  Tensor state = at::empty({sequences.count(), p.D, p.N}, wide);
  p.out = out.mutable_data_ptr();
  p.state = state.mutable_data_ptr();
  if (kept) {
    *kept = on_huge_pages(at::empty_symint({kept_blocks(a, s), s.D, s.N}, wide));
    p.kept = kept->mutable_data_ptr();
    kept->narrow(0, sequences.blocks(), kept->size(0) - sequences.blocks()).zero_();
  }
  run_kernel(selective_scan_kernel, selective_scan_layout_kernel, p,
             {sequences.count() * scan_tasks_of_sequence(p, kScanChannels),
              a.u.numel() * (p.N + 1) * kStateCost + state.numel()});
  return {out, state};
}

SelectiveScanArgs::Result selective_scan_cpu(const SelectiveScanArgs& args) {
  return scan(args, nullptr);
}

SelectiveScanForwardArgs::Result selective_scan_forward_cpu(const SelectiveScanForwardArgs& args) {
  Tensor kept;
  const auto [out, state] = scan(args, &kept);
  return {out, state, kept};
}

/// Channels of a backward task: the sums over channels that it leaves, 2N a position, are no more than half of its channels.
int64_t channel_range(int64_t N) { return std::clamp<int64_t>((4 * N + 63) / 64 * 64, 64, 256); }

/// Sums over parts of the backward, and the gradients that they become.
class ScanSums {
 public:
  ScanSums(SelectiveScanBackwardParams& p, const at::TensorOptions& wide) : p_(p), wide_(wide) {}

  void want_columns() {
    columns_ = at::empty({scan_tasks_of_sequence(p_, p_.range), p_.positions, 2 * p_.N}, wide_);
    p_.column_sums = columns_.mutable_data_ptr();
  }
  void want_channels() {
    channels_ = at::empty({p_.sequences, p_.D, p_.N + 2}, wide_);
    p_.channel_sums = channels_.mutable_data_ptr();
  }
  /// Sums of nothing have no pointer, but are zeros.
  void add() {
    if (columns_.defined())
      run_kernel(selective_scan_columns_kernel, selective_scan_columns_layout_kernel, p_,
                 {p_.batch * p_.G * ceil_div(p_.covered, kScanBlock), columns_.numel()});
    if (channels_.defined())
      run_rows(selective_scan_channels_kernel, p_, p_.D, 64, channels_.numel());
  }

 private:
  SelectiveScanBackwardParams& p_;
  at::TensorOptions wide_;
  Tensor columns_, channels_;
};

SelectiveScanBackwardArgs::Result selective_scan_backward_cpu(
    const SelectiveScanBackwardArgs& args) {
  check_selective_scan_backward(args);
  const SelectiveScanArgs& f = args.forward;
  const auto& wanted = args.output_mask;
  const Sequences sequences(SelectiveScanBackwardArgs::kName, f.u, f.cu_seqlens);
  const Tensor kept = args.kept.contiguous();
  SelectiveScanBackwardParams p{};
  describe(p, f, sequences);
  p.range = channel_range(p.N);
  p.sequences = sequences.count();
  p.batch = f.u.size(0);
  p.positions = p.batch * p.L;
  p.covered = sequences.covered();
  p.kept = kept.const_data_ptr();
  p.grad_out = input(args.grad_out);
  p.grad_state = signal(args.grad_state);
  const auto gradient = [&](SelectiveScanInput which, const OptionalTensor& like, void*& place) {
    Tensor grad = fresh_gradient(wanted[which], like, f.u);
    if (wanted[which]) place = grad.mutable_data_ptr();
    return grad;
  };
  /// Positions last: nobody's are cleared.
  const auto signal_gradient = [&](SelectiveScanInput which, const OptionalTensor& like,
                                   void*& place) {
    Tensor grad = on_huge_pages(gradient(which, like, place));
    if (wanted[which]) sequences.clear_tail(grad);
    return grad;
  };
  SelectiveScanBackwardArgs::Result grads{
      signal_gradient(kScanU, f.u, p.grad_u),
      signal_gradient(kScanDelta, f.delta, p.grad_delta),
      gradient(kScanA, f.A, p.grad_A),
      signal_gradient(kScanB, f.B, p.grad_B),
      signal_gradient(kScanC, f.C, p.grad_C),
      gradient(kScanD, f.D, p.grad_skip),
      signal_gradient(kScanZ, f.z, p.grad_z),
      gradient(kScanDeltaBias, f.delta_bias, p.grad_delta_bias),
      gradient(kScanInitialState, f.initial_state, p.grad_initial_state)};
  ScanSums sums(p, accumulate_options(f.u));
  if (wanted[kScanB] || wanted[kScanC]) sums.want_columns();
  if (wanted[kScanA] || wanted[kScanD] || wanted[kScanDeltaBias]) sums.want_channels();
  run_kernel(
      selective_scan_backward_kernel, selective_scan_backward_layout_kernel, p,
      {p.sequences * scan_tasks_of_sequence(p, p.range), f.u.numel() * (p.N + 1) * 2 * kStateCost});
  sums.add();
  return grads;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<selective_scan_cpu>(m);
  implement<selective_scan_forward_cpu>(m);
  implement<selective_scan_backward_cpu>(m);
}
