// Keep bits of a tile on the CPU, pair by pair: the double backward asks for them, whose products take far longer.
#include "attention/cpu/call.h"
#include "attention/dropout_keep.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {
namespace {

Tensor dropout_keep_cpu(const DropoutKeepArgs& args) {
  check_dropout_keep(args);
  const auto& [philox, dropout_p, tile] = args;
  const auto& [b, h, heads, i, rows, j, keys] = tile;
  const DropoutRule rule = dropout_rule("_attention_dropout_keep", dropout_p, philox);
  const Tensor kept = at::empty({heads, rows, keys}, philox.options().dtype(at::kBool));
  bool* next = kept.mutable_data_ptr<bool>();
  uint64_t words[4];
  for (int64_t head = h; head < h + heads; ++head)
    for (int64_t row = i; row < i + rows; ++row)
      for (int64_t key = j; key < j + keys; ++key) {
        if (key == j || key % 4 == 0)
          rule.words(b, head, row, static_cast<uint64_t>(key / 4), words);
        *next++ = words[key % 4] >= rule.threshold;
      }
  return kept;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) { fulgurite::implement<fulgurite::dropout_keep_cpu>(m); }
