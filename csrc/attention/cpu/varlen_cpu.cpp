// Attention over packed sequences on the CPU: every sequence a problem of its own for the kernels of attention.
#include "attention/cpu/call.h"
#include "attention/varlen.h"
#include "common/fresh.h"
#include "common/offsets.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

namespace fulgurite {
namespace {

struct Offsets {
  std::vector<int64_t> query, key;
};

template <class Args>
Offsets offsets_of(const char* op, const Args& args) {
  return {read_offsets(op, "cu_seqlens_q", args.cu_seqlens_q, args.query.size(0)),
          read_offsets(op, "cu_seqlens_k", args.cu_seqlens_k, args.key.size(0))};
}

template <class Args>
AttentionCall packed_call(const char* op, Pass pass, const Args& args, const Offsets& offsets) {
  AttentionCall call(op, pass, args.query, args.key, args.value, true,
                     args.query.size(0) + args.key.size(0), args.scores);
  for (size_t s = 0; s + 1 < offsets.query.size(); ++s)
    call.add_sequence(offsets.query[s], offsets.query[s + 1] - offsets.query[s], offsets.key[s],
                      offsets.key[s + 1] - offsets.key[s]);
  return call;
}

/// Rows past the last sequence belong to nobody.
void fill_tail(const Tensor& tensor, int64_t dim, int64_t used, double value) {
  tensor.narrow(dim, used, tensor.size(dim) - used).fill_(value);
}

AttentionResult varlen_cpu(const VarlenArgs& args) {
  check_varlen(args);
  const Tensor& query = args.query;
  const Offsets offsets = offsets_of("attention_varlen", args);
  AttentionCall call = packed_call("attention_varlen", Pass::kForward, args, offsets);
  Tensor out = at::empty({query.size(0), query.size(1), args.value.size(2)}, query.options());
  Tensor lse = at::empty({query.size(1), query.size(0)}, accumulate_options(query));
  call.p.out = head_output(out, packed_strides(out));
  call.p.lse = head_output(lse, packed_lse_strides(lse));
  call.forward();
  fill_tail(out, 0, offsets.query.back(), 0.0);
  fill_tail(lse, 1, offsets.query.back(), -INFINITY);
  return {out, lse};
}

VarlenGradients varlen_backward_cpu(const VarlenBackwardArgs& args) {
  check_varlen_backward(args);
  const Tensor& query = args.query;
  const Offsets offsets = offsets_of("_attention_varlen_backward", args);
  AttentionCall call = packed_call("_attention_varlen_backward", Pass::kBackward, args, offsets);
  AttentionParams& p = call.p;
  p.saved_out = head_rows(args.out, packed_strides(args.out));
  p.saved_lse = head_rows(args.lse, packed_lse_strides(args.lse));
  if (args.grad_out) p.grad_out = head_rows(args.grad_out, packed_strides(*args.grad_out));
  if (args.grad_lse) p.grad_lse = head_rows(args.grad_lse, packed_lse_strides(*args.grad_lse));
  const auto rows_gradient = [&](VarlenInput input, const Tensor& like, int64_t used,
                                 Output4& place) {
    Tensor grad = fresh_gradient(args.output_mask[input], like, query);
    if (args.output_mask[input]) {
      place = head_output(grad, packed_strides(grad));
      fill_tail(grad, 0, used, 0.0);
    }
    return grad;
  };
  Tensor grad_query = rows_gradient(kVarlenQuery, query, offsets.query.back(), p.grad_query);
  Tensor grad_key = rows_gradient(kVarlenKey, args.key, offsets.key.back(), p.grad_key);
  Tensor grad_value = rows_gradient(kVarlenValue, args.value, offsets.key.back(), p.grad_value);
  Tensor grad_sink = fresh_gradient(args.output_mask[kVarlenSink], args.scores.sink, query);
  if (args.output_mask[kVarlenSink]) call.want_sink(grad_sink);
  call.backward();
  return {grad_query, grad_key, grad_value, grad_sink};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) {
  using namespace fulgurite;
  implement<varlen_cpu>(m);
  implement<varlen_backward_cpu>(m);
}
