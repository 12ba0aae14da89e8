// Schemas of the attention family and its public C++ functions.
#include "attention/decode.h"
#include "attention/merge.h"
#include "attention/varlen_args.h"
#include "common/define.h"
#include "fulgurite/attention.h"

#include <torch/library.h>

namespace {

const std::string kScores =
    "Tensor? bias=None, Tensor? mask=None, Tensor? sink=None, Tensor? alibi_slopes=None, "
    "Tensor? block_layout=None, SymInt block_size=0, float? scale=None, bool causal=False, "
    "str align=\"bottom_right\", SymInt window_left=-1, SymInt window_right=-1, "
    "SymInt sink_tokens=0, SymInt chunk_size=0, float softcap=0.0, str score=\"softmax\", "
    "float score_scale=1.0, float dropout_p=0.0, Tensor? philox=None";
const std::string kVarlenScores =
    "Tensor? sink=None, Tensor? alibi_slopes=None, float? scale=None, bool causal=False, "
    "str align=\"bottom_right\", SymInt window_left=-1, SymInt window_right=-1, "
    "SymInt sink_tokens=0, float softcap=0.0, float dropout_p=0.0, Tensor? philox=None";

const std::string kSchemas[] = {
    "attention(Tensor query, Tensor key, Tensor value, *, " + kScores +
        ") -> (Tensor out, Tensor lse)",
    "_attention_backward(Tensor? grad_out, Tensor? grad_lse, Tensor query, Tensor key, "
    "Tensor value, Tensor out, Tensor lse, *, " +
        kScores +
        ", bool[5] output_mask) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
        "Tensor grad_bias, Tensor grad_sink)",
    "_attention_dropout_keep(Tensor philox, float dropout_p, int b, int h, int heads, int i, "
    "int rows, int j, int keys) -> Tensor",
    "attention_varlen(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, "
    "Tensor cu_seqlens_k, *, " +
        kVarlenScores + ") -> (Tensor out, Tensor lse)",
    "_attention_varlen_backward(Tensor? grad_out, Tensor? grad_lse, Tensor query, Tensor key, "
    "Tensor value, Tensor out, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, *, " +
        kVarlenScores +
        ", bool[4] output_mask) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
        "Tensor grad_sink)",
    "attention_decode(Tensor query, Tensor key_cache, Tensor value_cache, Tensor cache_lens, *, "
    "Tensor? page_table=None, Tensor? mask=None, Tensor? sink=None, Tensor? alibi_slopes=None, "
    "float? scale=None, bool causal=True, SymInt window_left=-1, SymInt sink_tokens=0, "
    "float softcap=0.0) -> (Tensor out, Tensor lse)",
    "attention_merge(Tensor[] outs, Tensor[] lses) -> (Tensor out, Tensor lse)",
    "_attention_merge_backward(Tensor? grad_out, Tensor? grad_lse, Tensor[] outs, Tensor[] lses, "
    "Tensor lse, *, bool[] output_mask) -> (Tensor[] grad_outs, Tensor[] grad_lses)",
    "rope(Tensor x, Tensor cos, Tensor sin, *, bool interleaved=False, bool conjugate=False) -> "
    "Tensor",
};
const std::string kDoubleBackward =
    "_attention_double_backward(Tensor? gg_query, Tensor? gg_key, Tensor? gg_value, "
    "Tensor? gg_bias, Tensor? gg_sink, Tensor? grad_out, Tensor? grad_lse, Tensor query, "
    "Tensor key, Tensor value, *, " +
    kScores +
    ", bool[7] output_mask) -> (Tensor grad_grad_out, Tensor grad_grad_lse, "
    "Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias, "
    "Tensor grad_sink)";

}  // namespace

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  for (const std::string& schema : kSchemas) fulgurite::define(m, schema);
  fulgurite::define(m, kDoubleBackward, fulgurite::OnCuda::kComposite);
}

namespace fulgurite {

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const AttentionOptions& o) {
  return call(arguments_of<AttentionArgs>(
      query, key, value, o.bias, o.mask, o.sink, o.alibi_slopes, o.block_layout, o.block_size,
      o.scale, o.causal, o.align, o.window_left, o.window_right, o.sink_tokens, o.chunk_size,
      o.softcap, o.score, o.score_scale, o.dropout_p, o.philox));
}

std::tuple<Tensor, Tensor> attention_varlen(const Tensor& query, const Tensor& key,
                                            const Tensor& value, const Tensor& cu_seqlens_q,
                                            const Tensor& cu_seqlens_k,
                                            const AttentionVarlenOptions& o) {
  return call(arguments_of<VarlenArgs>(
      query, key, value, cu_seqlens_q, cu_seqlens_k, o.sink, o.alibi_slopes, o.scale, o.causal,
      o.align, o.window_left, o.window_right, o.sink_tokens, o.softcap, o.dropout_p, o.philox));
}

std::tuple<Tensor, Tensor> attention_decode(const Tensor& query, const Tensor& key_cache,
                                            const Tensor& value_cache, const Tensor& cache_lens,
                                            const AttentionDecodeOptions& o) {
  return call(arguments_of<DecodeArgs>(query, key_cache, value_cache, cache_lens, o.page_table,
                                       o.mask, o.sink, o.alibi_slopes, o.scale, o.causal,
                                       o.window_left, o.sink_tokens, o.softcap));
}

std::tuple<Tensor, Tensor> attention_merge(TensorList outs, TensorList lses) {
  return call(MergeArgs{outs, lses});
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
            bool conjugate) {
  return call(RopeArgs{x, cos, sin, interleaved, conjugate});
}

}  // namespace fulgurite
