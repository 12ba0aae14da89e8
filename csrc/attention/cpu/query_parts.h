// Memory for the parts of dQ that the tasks of a backward leave. The tasks of a key/value head write one part each; the last
// of them to finish has them added up, and their memory goes to the next head. Where tasks start one by one and in order, the
// heads under way are at most the workers and one more: that many heads' parts suffice, however many heads there are.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "attention/args.h"
#include "attention/cpu/params.h"

namespace fulgurite {

class QueryParts {
 public:
  /// `row`: elements of a row of a part, of the type of `options`; `under_way`: parts that may be in use at once. Sets
  /// p.query_parts.
  QueryParts(AttentionParams& p, int64_t row, int64_t under_way, const at::TensorOptions& options);

  /// Gives the task its part.
  void start(int64_t task);
  /// Whether it was the last of its head.
  bool finish(int64_t task);
  /// Calls visit(b, key/value head) for what the task's head adds up, then gives its parts back.
  template <class Visit>
  void close(int64_t task, const Visit& visit) {
    const Owner owner = owner_of(task);
    for (int64_t b = owner.b; b < p_.B; b += p_.batch_stride) visit(b, owner.head);
    release(owner);
  }

 private:
  struct Owner {
    int64_t b, head, split;  // b: the first of the task's batch entries
  };
  Owner owner_of(int64_t task) const;
  int64_t entry(const Owner& owner, int64_t b) const;
  int64_t elements(int64_t b) const;
  /// Returns where the part ends.
  char* place(const Owner& owner, char* memory);
  void place_all(int64_t tasks, int64_t total, const at::TensorOptions& options);
  void release(const Owner& owner);

  const AttentionParams& p_;
  int64_t row_, bytes_;
  std::vector<void*> table_;
  std::vector<Tensor> memory_;
  bool pooled_ = false;  // else every task has memory of its own
  std::vector<char*> free_;
  std::mutex mutex_;
  std::vector<std::atomic<int64_t>> left_;  // tasks of each head that have not finished
};

}  // namespace fulgurite
