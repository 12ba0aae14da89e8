// Global memory: buffers of exact size, far from each other, of which the checker knows what has been written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/host/shadow.h"

namespace cux::host {

/// A buffer that nothing has written. Everything in it is 0xff, NaN for numbers.
void* allocate(size_t bytes);
/// The same of any size, with zeros in it: memory is taken where it is touched.
void* allocate_sparse(size_t bytes);
void release(void* buffer);
/// The host has written [data, data + bytes), so kernels may read it.
void written_by_host(const void* data, size_t bytes);
/// A buffer of which that was said in vain: only kernels have written to it.
void written_by_nobody(const void* buffer);

struct Page {
  static constexpr size_t kBytes = 1024;
  Cell cells[kBytes];
  // While schedules are compared: its bytes before the launch's first write to it, and whether the first schedule wrote to it.
  bool saved = false, kept = false;
  unsigned char before[kBytes];
};

struct Buffer {
  unsigned char* data;
  size_t bytes;
  unsigned char* span;  // with the gaps before and after it
  size_t span_bytes;
  std::vector<std::pair<size_t, size_t>> from_host;  // ranges of bytes
  std::unordered_map<size_t, std::unique_ptr<Page>> pages;

  bool is_from_host(size_t offset) const;
  Cell* cell(size_t offset);
  /// Before a write, while schedules are compared.
  void save(size_t offset, size_t bytes);
  size_t page_bytes(size_t page) const;
};

/// The buffer, or the gap beside it, that an address lies in; null for the host's memory.
Buffer* buffer_at(uintptr_t address);

/// What launches in two schedules wrote, compared bit by bit.
class WrittenBits {
 public:
  /// From here on writes are noted.
  void begin();
  /// Puts back what was there before, and with keep_and_restore keeps what was written since.
  void restore();
  void keep_and_restore();
  /// Reports the first byte that the launch since begin() left otherwise than the one that was kept.
  void compare(const char* kept_under, const char* now_under);
  void end();

 private:
  struct Kept {
    Buffer* buffer;
    size_t page;
    std::vector<unsigned char> bytes;
  };
  std::vector<Kept> kept_;
};
bool is_noting_writes();

/// Elements for kernels, owned.
template <class T>
class Array {
 public:
  explicit Array(size_t n) : data_(static_cast<T*>(allocate(n * sizeof(T)))), size_(n) {}
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    for (size_t i = 0; i < size_; ++i) data_[i] = values[i];
    written_by_host(data_, size_ * sizeof(T));
  }
  ~Array() { release(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_;
  size_t size_;
};

}  // namespace cux::host
