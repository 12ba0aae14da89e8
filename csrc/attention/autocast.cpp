// query, key and value to the autocast dtype; rope runs in the dtype it is given.
#include "common/autocast.h"
#include "attention/args.h"

#include <torch/library.h>

namespace fulgurite {
namespace {

AttentionResult attention_autocast(const AttentionArgs& args) {
  const AutocastTo lower(args.query.device().type());
  AttentionArgs cast = args;
  cast.query = lower(args.query);
  cast.key = lower(args.key);
  cast.value = lower(args.value);
  return cast.call();
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, AutocastCPU, m) {
  m.impl("attention", fulgurite::attention_from_schema<fulgurite::attention_autocast>);
}

TORCH_LIBRARY_IMPL(fulgurite, AutocastCUDA, m) {
  m.impl("attention", fulgurite::attention_from_schema<fulgurite::attention_autocast>);
}
