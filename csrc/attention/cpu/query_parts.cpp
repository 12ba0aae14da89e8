#include "attention/cpu/query_parts.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace fulgurite {

QueryParts::QueryParts(AttentionParams& p, int64_t row, int64_t under_way,
                       const at::TensorOptions& options)
    : p_(p),
      row_(row),
      bytes_(static_cast<int64_t>(options.dtype().itemsize())),
      table_(static_cast<size_t>(p.B * p.Hkv * kQueryParts)),
      left_(static_cast<size_t>(p.batch_stride * p.Hkv)) {
  p.query_parts = table_.data();
  int64_t total = 0, largest = 0;
  for (int64_t b = 0; b < p.batch_stride; ++b) {
    const int64_t blocks = key_blocks_of(p.sequences[b]);
    for (int64_t head = 0; head < p.Hkv; ++head)
      left_[static_cast<size_t>(b * p.Hkv + head)].store(blocks, std::memory_order_relaxed);
    total += p.Hkv * query_parts_of(p.sequences[b]) * elements(b);
    if (blocks > 0) largest = std::max(largest, elements(b));
  }
  const int64_t most = under_way * kQueryParts;
  pooled_ = under_way < p.batch_stride * p.Hkv && most * largest < total;
  if (!pooled_) {
    place_all(total, options);
    return;
  }
  for (int64_t i = 0; i < most; ++i) {
    memory_.push_back(at::empty({largest}, options));
    free_.push_back(static_cast<char*>(memory_.back().mutable_data_ptr()));
  }
}

QueryParts::Head QueryParts::head_of(int64_t task) const {
  const Block k = key_block_of(p_, task);
  return {k.b, k.head};
}

size_t QueryParts::entry(const Head& head, int64_t b, int64_t part) const {
  return static_cast<size_t>((b * p_.Hkv + head.index) * kQueryParts + part);
}

int64_t QueryParts::elements(int64_t first_b) const {
  int64_t sum = 0;
  for (int64_t b = first_b; b < p_.B; b += p_.batch_stride) sum += part_elements(b);
  return sum;
}

char* QueryParts::place(const Head& head, int64_t part, char* memory) {
  for (int64_t b = head.b; b < p_.B; b += p_.batch_stride) {
    table_[entry(head, b, part)] = memory;
    memory += part_elements(b) * bytes_;
  }
  return memory;
}

void QueryParts::place_all(int64_t total, const at::TensorOptions& options) {
  memory_.push_back(at::empty({total}, options));
  char* memory = static_cast<char*>(memory_.back().mutable_data_ptr());
  for (int64_t b = 0; b < p_.batch_stride; ++b)
    for (int64_t head = 0; head < p_.Hkv; ++head)
      for (int64_t part = 0; part < query_parts_of(p_.sequences[b]); ++part)
        memory = place({b, head}, part, memory);
}

void QueryParts::start(int64_t task) {
  if (!pooled_) return;
  const Head head = head_of(task);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (table_[entry(head, head.b, 0)]) return;
  for (int64_t part = 0; part < query_parts_of(p_.sequences[head.b]); ++part) {
    place(head, part, free_.back());
    free_.pop_back();
  }
}

bool QueryParts::finish(int64_t task) {
  const Head head = head_of(task);
  return left_[static_cast<size_t>(head.b * p_.Hkv + head.index)].fetch_sub(
             1, std::memory_order_acq_rel) == 1;
}

void QueryParts::release(const Head& head) {
  if (!pooled_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int64_t part = 0; part < query_parts_of(p_.sequences[head.b]); ++part)
    free_.push_back(static_cast<char*>(table_[entry(head, head.b, part)]));
}

}  // namespace fulgurite
