// Memory for the parts of dQ that a backward's key blocks add to (query_order.h). The last task of a key/value head to finish
// has the head's parts added up, and their memory goes to the next head. Where tasks start one by one and in order, the heads
// under way are at most the workers and one more: that many heads' parts suffice, however many heads there are.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "attention/args.h"
#include "attention/cpu/kernels/blocks.h"

namespace fulgurite {

class QueryParts {
 public:
  /// `row`: elements of a row of a part, of the type of `options`; `under_way`: heads that may be in use at once. Sets
  /// p.query_parts.
  QueryParts(AttentionParams& p, int64_t row, int64_t under_way, const at::TensorOptions& options);

  /// Gives the head of the task its parts, unless an earlier task of it did.
  void start(int64_t task);
  /// Whether it was the last of its head.
  bool finish(int64_t task);
  /// Calls visit(b, key/value head) for what the task's head adds up, then gives its parts back.
  template <class Visit>
  void close(int64_t task, const Visit& visit) {
    const Head head = head_of(task);
    for (int64_t b = head.b; b < p_.B; b += p_.batch_stride) visit(b, head.index);
    release(head);
  }

 private:
  struct Head {
    int64_t b, index;  // b: the first of its tasks' batch entries
  };
  Head head_of(int64_t task) const;
  size_t entry(const Head& head, int64_t b, int64_t part) const;
  /// Of one part, over the head's batch entries.
  int64_t elements(int64_t first_b) const;
  /// Returns where the part ends.
  char* place(const Head& head, int64_t part, char* memory);
  void place_all(int64_t total, const at::TensorOptions& options);
  void release(const Head& head);
  int64_t part_elements(int64_t b) const { return p_.group * p_.sequences[b].N * row_; }

  const AttentionParams& p_;
  int64_t row_, bytes_;
  std::vector<void*> table_;
  std::vector<Tensor> memory_;
  bool pooled_ = false;  // else every head has memory of its own
  std::vector<char*> free_;
  std::mutex mutex_;
  std::vector<std::atomic<int64_t>> left_;  // tasks of each head that have not finished
};

}  // namespace fulgurite
