// What show_config and explain tell of a kernel, whatever device it runs on: what it is compiled for, what ran last, and counts.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fulgurite/config.h"

namespace fulgurite {

/// Tiles of a kernel that cuts its problem into them, and how many it could skip. Accessed atomically.
struct TileCount {
  int64_t rows, columns;  // of a tile, in the last call
  int64_t seen, skipped;  // since the library was loaded
};

/// One entry of the table of all kernels.
class KernelInfo {
 public:
  KernelInfo(const char* device, const char* name);
  KernelInfo(const KernelInfo&) = delete;
  KernelInfo& operator=(const KernelInfo&) = delete;
  virtual ~KernelInfo() = default;

  void count(int64_t tasks, int64_t threads) {
    calls_.fetch_add(1, std::memory_order_relaxed);
    tasks_.fetch_add(tasks, std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
  }
  TileCount* tiles() { return &tiles_; }
  KernelReport report() const;

 protected:
  /// What it is compiled for, the one that a call in bfloat16 would run now, and the one that ran last.
  virtual std::vector<std::string> variants() const = 0;
  virtual std::string active() const = 0;
  virtual std::string ran() const = 0;

 private:
  const char *device_, *name_;
  std::atomic<int64_t> calls_{0}, tasks_{0}, threads_{0};
  TileCount tiles_{};
};

}  // namespace fulgurite
