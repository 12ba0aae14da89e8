// query, key and value to the autocast dtype, decoding's query to that of its caches; rope and merging run in the dtype they
// are given.
#include "common/autocast.h"
#include "attention/decode.h"
#include "attention/varlen_args.h"

#include <torch/library.h>

namespace fulgurite {
namespace {

template <class Args>
AttentionResult lowered(const Args& args) {
  const AutocastTo lower(args.query.device().type());
  Args cast = args;
  cast.query = lower(args.query);
  cast.key = lower(args.key);
  cast.value = lower(args.value);
  return call(cast);
}

/// A cache is never copied.
AttentionResult decode_autocast(const DecodeArgs& args) {
  const AutocastTo cache(args.query.device().type(), args.key_cache.scalar_type());
  DecodeArgs cast = args;
  cast.query = cache(args.query);
  return call(cast);
}

void register_autocast(torch::Library& m) {
  implement<lowered<AttentionArgs>>(m);
  implement<lowered<VarlenArgs>>(m);
  implement<decode_autocast>(m);
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) { fulgurite::register_autocast(m); }
TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) { fulgurite::register_autocast(m); }
