// Decoding on the CPU, torch side: reads lengths and pages, cuts the caches into splits.
#include "attention/cpu/call.h"
#include "attention/cpu/kernels/decode.h"
#include "attention/decode.h"
#include "common/check.h"
#include "common/offsets.h"
#include "cpu/tasks.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fulgurite {

FULGURITE_KERNEL(attention_decode, attention_decode, DecodeTaskFn);
FULGURITE_KERNEL(attention_decode, attention_decode_merge, DecodeTaskFn);
FULGURITE_KERNEL(attention_decode, attention_decode_layout, DecodeLayoutFn);

namespace {

constexpr const char* op = "attention_decode";

std::vector<int64_t> read_lengths(const DecodeArgs& args, int64_t longest) {
  std::vector<int64_t> lengths = host_integers(args.cache_lens);
  for (size_t b = 0; b < lengths.size(); ++b)
    FULGURITE_CHECK(lengths[b] >= 0 && lengths[b] <= longest, "expected cache_lens from 0 to ",
                    longest, ", got ", lengths[b], " at ", b);
  return lengths;
}

/// Entries past the length are not read.
void check_pages(const Tensor& table, int64_t page, int64_t available,
                 const std::vector<int64_t>& lengths) {
  const auto* const entries = table.const_data_ptr<int32_t>();
  for (size_t b = 0; b < lengths.size(); ++b)
    for (int64_t i = 0; i * page < lengths[b]; ++i) {
      const int32_t entry = entries[static_cast<int64_t>(b) * table.size(1) + i];
      FULGURITE_CHECK(entry >= 0 && entry < available, "expected page_table entries from 0 to ",
                      available - 1, ", got ", entry, " at [", b, ", ", i, "]");
    }
}

/// Keys of a task: enough that what a split leaves behind is small beside what it reads.
int64_t keys_of_split(int64_t rows) { return 4 * kKeyBlock * ceil_div(rows, 16); }

AttentionResult decode_cpu(const DecodeArgs& args) {
  const AttentionShape shape = check_decode(args);
  const std::vector<int64_t> lengths = read_lengths(args, shape.M.expect_int());
  const Tensor& query = args.query;
  const int64_t B = query.size(0), N = query.size(2);
  Tensor table;
  if (args.page_table) {
    table = args.page_table->contiguous();
    check_pages(table, args.key_cache.size(2), args.key_cache.size(0), lengths);
  }
  const auto acc = accumulate_options(query);
  Tensor out = at::empty({B, query.size(1), N, args.value_cache.size(3)}, query.options());
  Tensor lse = at::empty({B, query.size(1), N}, acc);
  if (lse.numel() == 0) return {out, lse};

  AttentionCall call("attention_decode", Pass::kForward, query, args.key_cache, args.value_cache,
                     false, N + shape.M.expect_int(), args.scores);
  DecodeParams d{};
  d.page = args.key_cache.size(2);
  if (table.defined()) {
    d.page_table = table.const_data_ptr<int32_t>();
    d.pages = table.size(1);
  }
  d.rows = call.p.group * N;
  d.split_keys = keys_of_split(d.rows);
  for (const int64_t length : lengths) call.add_splits(N, length, d.split_keys);
  d.attention = call.p;
  d.attention.out = head_output(out, batch_strides(out));
  d.attention.lse = head_output(lse, batch_strides(lse));

  DecodeLayout layout{};
  attention_decode_layout_kernel.get(dtype_of(d))(d, &layout);
  const int64_t tasks = d.attention.key_blocks * d.attention.Hkv;
  const Tensor partial = at::empty({tasks * d.rows, layout.acc_row}, acc),
               statistics = at::empty({2, tasks * d.rows}, acc);
  d.acc = partial.mutable_data_ptr();
  d.max = statistics.mutable_data_ptr();
  d.sum = statistics[1].mutable_data_ptr();

  count_tiles(attention_decode_kernel, d.attention);
  run_kernel(attention_decode_kernel, d, {tasks, call.products(), layout.scratch});
  run_kernel(attention_decode_merge_kernel, d,
             {B * d.attention.Hkv, partial.numel(),
              layout.acc_row * static_cast<int64_t>(acc.dtype().itemsize())});
  return {out, lse};
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_IMPL(fulgurite, CPU, m) { fulgurite::implement<fulgurite::decode_cpu>(m); }
