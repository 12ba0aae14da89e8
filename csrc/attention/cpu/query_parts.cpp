#include "attention/cpu/query_parts.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace fulgurite {

QueryParts::QueryParts(AttentionParams& p, int64_t row, int64_t under_way,
                       const at::TensorOptions& options)
    : p_(p),
      row_(row),
      bytes_(static_cast<int64_t>(options.dtype().itemsize())),
      table_(static_cast<size_t>(p.splits * p.Hkv)),
      left_(static_cast<size_t>(p.batch_stride * p.Hkv)) {
  p.query_parts = table_.data();
  int64_t tasks = 0, total = 0, largest = 0;
  for (int64_t b = 0; b < p.batch_stride; ++b) {
    const int64_t splits = p.sequences[b].splits;
    int64_t part = 0;
    for (int64_t of = b; of < p.B; of += p.batch_stride) part += elements(of);
    for (int64_t head = 0; head < p.Hkv; ++head)
      left_[static_cast<size_t>(b * p.Hkv + head)].store(splits, std::memory_order_relaxed);
    tasks += splits * p.Hkv;
    total += splits * p.Hkv * part;
    if (splits > 0) largest = std::max(largest, part);
  }
  pooled_ = under_way < tasks && under_way * largest < total;
  if (!pooled_) {
    place_all(tasks, total, options);
    return;
  }
  for (int64_t i = 0; i < under_way; ++i) {
    memory_.push_back(at::empty({largest}, options));
    free_.push_back(static_cast<char*>(memory_.back().mutable_data_ptr()));
  }
}

QueryParts::Owner QueryParts::owner_of(int64_t task) const {
  const Sequence* const last =
      std::upper_bound(p_.sequences, p_.sequences + p_.B, task,
                       [&](int64_t t, const Sequence& s) { return t < s.split_start * p_.Hkv; }) -
      1;
  const int64_t within = task - last->split_start * p_.Hkv;
  return {last - p_.sequences, within / last->splits, within % last->splits};
}

int64_t QueryParts::entry(const Owner& owner, int64_t b) const {
  const Sequence& s = p_.sequences[b];
  return s.split_start * p_.Hkv + owner.head * s.splits + owner.split;
}

int64_t QueryParts::elements(int64_t b) const { return p_.group * p_.sequences[b].N * row_; }

char* QueryParts::place(const Owner& owner, char* memory) {
  for (int64_t b = owner.b; b < p_.B; b += p_.batch_stride) {
    table_[static_cast<size_t>(entry(owner, b))] = memory;
    memory += elements(b) * bytes_;
  }
  return memory;
}

void QueryParts::place_all(int64_t tasks, int64_t total, const at::TensorOptions& options) {
  memory_.push_back(at::empty({total}, options));
  char* memory = static_cast<char*>(memory_.back().mutable_data_ptr());
  for (int64_t task = 0; task < tasks; ++task) memory = place(owner_of(task), memory);
}

void QueryParts::start(int64_t task) {
  if (!pooled_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  place(owner_of(task), free_.back());
  free_.pop_back();
}

bool QueryParts::finish(int64_t task) {
  const Owner owner = owner_of(task);
  return left_[static_cast<size_t>(owner.b * p_.Hkv + owner.head)].fetch_sub(
             1, std::memory_order_acq_rel) == 1;
}

void QueryParts::release(const Owner& owner) {
  if (!pooled_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int64_t split = 0; split < p_.sequences[owner.b].splits; ++split)
    free_.push_back(static_cast<char*>(
        table_[static_cast<size_t>(entry({owner.b, owner.head, split}, owner.b))]));
}

}  // namespace fulgurite
