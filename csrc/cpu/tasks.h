// Work is cut into tasks by its size, never by the number of threads; threads then take the next task from a counter.
// Tasks write disjoint outputs, so who runs which does not show in the bits.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/ceil_div.h"
#include "cpu/isa.h"

namespace fulgurite {

struct TaskSpace {
  int64_t count;              // number of tasks
  int64_t cost;               // arithmetic or bytes of the whole call, whichever is larger
  int64_t scratch_bytes = 0;  // private to one running task
};

/// Arithmetic or bytes that pay for taking a task from the counter.
inline constexpr int64_t kBatchCost = int64_t{1} << 14;

/// Threads that a call runs on, its caller's at least.
inline int64_t workers_for(const TaskSpace& space) {
  const bool inline_run = space.cost < inline_cost() || at::in_parallel_region();
  return inline_run ? 1 : std::clamp<int64_t>(space.count, 1, at::get_num_threads());
}
/// Small tasks are taken several at a time: the counter's cache line goes round among the threads.
inline int64_t tasks_at_a_time(const TaskSpace& space, int64_t workers) {
  return std::clamp<int64_t>(kBatchCost * space.count / std::max<int64_t>(space.cost, 1), 1,
                             std::max<int64_t>(space.count / (8 * workers), 1));
}

/// Calls run(task, scratch) for every task in [0, count). `run` must not throw.
template <class Run>
void run_tasks(KernelInfo& kernel, const TaskSpace& space, const Run& run) {
  const int64_t workers = workers_for(space);
  kernel.count(space.count, workers);
  if (space.count == 0) return;
  const int64_t stride = (space.scratch_bytes + 63) / 64 * 64;
  const at::DataPtr scratch =
      c10::GetCPUAllocator()->allocate(static_cast<size_t>(stride * workers));
  char* const base = static_cast<char*>(scratch.get());
  if (workers == 1) {
    for (int64_t task = 0; task < space.count; ++task) run(task, static_cast<void*>(base));
    return;
  }
  const int64_t batch = tasks_at_a_time(space, workers);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t first; (first = next.fetch_add(batch, std::memory_order_relaxed)) < space.count;)
        for (int64_t task = first; task < std::min(first + batch, space.count); ++task)
          run(task, static_cast<void*>(base + worker * stride));
  });
}

/// The dtype that chooses a kernel's function.
template <class Params>
Dtype dtype_of(const Params& params) {
  return params.dtype;
}

/// The tasks of a kernel that takes (params, task, scratch).
template <class Fn, class Params>
void run_kernel(Kernel<Fn>& kernel, const Params& params, const TaskSpace& space) {
  Fn* const fn = kernel.get(dtype_of(params));
  run_tasks(kernel, space, [&](int64_t task, void* scratch) { fn(params, task, scratch); });
}

/// The same with the scratch memory that `layout` asks for.
template <class Fn, class LayoutFn, class Params>
void run_kernel(Kernel<Fn>& kernel, const Kernel<LayoutFn>& layout, const Params& params,
                TaskSpace space) {
  layout.get(dtype_of(params))(params, &space.scratch_bytes);
  run_kernel(kernel, params, space);
}

/// Ranges of `per_task` rows for a kernel that takes (params, first row, last row).
template <class Fn, class Params>
void run_rows(Kernel<Fn>& kernel, const Params& params, int64_t rows, int64_t per_task,
              int64_t cost) {
  Fn* const fn = kernel.get(dtype_of(params));
  run_tasks(kernel, {ceil_div(rows, per_task), cost}, [&](int64_t task, void*) {
    fn(params, task * per_task, std::min(rows, (task + 1) * per_task));
  });
}

}  // namespace fulgurite
