// Times kernels alone: one thread and its own time, no torch, the same memory in every round. A line per case:
//   kernel, set, dtype, shape, µs of the best round and of the median one, and what the best one makes.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace fulgurite::bench {

/// What one run computes or moves.
struct Work {
  double amount;
  const char* unit;  // of 1e9 a second
};
inline Work flops(double n) { return {n, "GFLOP/s"}; }
inline Work bytes(double n) { return {n, "GB/s"}; }

int64_t bytes_of(Dtype dtype);
inline Dtype accumulate(Dtype dtype) { return dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32; }

/// Memory from an address that is a multiple of 64, of zeros, or of numbers within ±1.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  Memory(Dtype dtype, int64_t elements);
  void* data() const;
  template <class T>
  T* as() const {
    return static_cast<T*>(data());
  }

 private:
  std::vector<char> bytes_;
};

class Bench {
 public:
  /// The program's options; ends the program where they ask for it or make no sense.
  Bench(int argc, char** argv);

  /// Calls visit() with each instruction set that was asked for.
  void for_sets(const std::function<void()>& visit);
  /// The shapes to measure, of which the first is the smallest.
  template <class Shape>
  std::vector<Shape> shapes(std::vector<Shape> all) const {
    if (smallest_) all.resize(1);
    return all;
  }
  /// Whether one of these will be timed: the filter wants it, and the set in use has a function of its own for it.
  bool wants(std::initializer_list<const CpuKernel*> kernels, Dtype dtype,
             const std::string& shape) const;
  /// One case, if it is wanted.
  void time(const CpuKernel& kernel, Dtype dtype, const std::string& shape, Work work,
            const std::function<void()>& run);
  /// The program's exit status.
  int finish() const;

 private:
  bool wants(const CpuKernel& kernel, Dtype dtype, const std::string& shape) const;

  std::vector<std::string> sets_;
  std::string filter_;
  double seconds_ = 0.5;
  bool smallest_ = false;
  int cases_ = 0;
};

/// Tasks one after the other, with scratch memory of their own.
template <class Fn, class Params>
void run_tasks(Fn* fn, const Params& params, int64_t tasks, const Memory& scratch) {
  for (int64_t task = 0; task < tasks; ++task) fn(params, task, scratch.data());
}

}  // namespace fulgurite::bench
