#include "cuda/host/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/host/report.h"

namespace cux::host {
namespace {

constexpr size_t kPage = 4096, kGap = 64 << 10;

/// By the end of their spans.
std::map<uintptr_t, std::unique_ptr<Buffer>>& buffers() {
  static std::map<uintptr_t, std::unique_ptr<Buffer>> all;
  return all;
}

bool noting = false;

/// Gaps can be read and written: the checker has said what was wrong before an access gets there.
unsigned char* take(size_t bytes, size_t gap) {
  const size_t rounded = (bytes + kPage - 1) / kPage * kPage, span = rounded + 2 * gap;
  void* const at = mmap(nullptr, span, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    std::perror("cux: mmap");
    std::abort();
  }
  auto buffer = std::make_unique<Buffer>();
  buffer->span = static_cast<unsigned char*>(at);
  buffer->span_bytes = span;
  buffer->data = buffer->span + gap;
  buffer->bytes = bytes;
  unsigned char* const data = buffer->data;
  buffers()[reinterpret_cast<uintptr_t>(at) + span] = std::move(buffer);
  return data;
}

}  // namespace

void* allocate(size_t bytes) {
  unsigned char* const data = take(bytes, kGap);
  std::memset(data, 0xff, bytes);
  return data;
}

// An offset that was cut to 32 bits leads at most 2³² elements astray.
void* allocate_sparse(size_t bytes) { return take(bytes, std::max(bytes, size_t{1} << 34)); }

void release(void* data) {
  const auto found = buffers().upper_bound(reinterpret_cast<uintptr_t>(data));
  if (found == buffers().end() || found->second->data != data) std::abort();
  munmap(found->second->span, found->second->span_bytes);
  buffers().erase(found);
}

Buffer* buffer_at(uintptr_t address) {
  const auto found = buffers().upper_bound(address);
  if (found == buffers().end()) return nullptr;
  Buffer* const buffer = found->second.get();
  return address >= reinterpret_cast<uintptr_t>(buffer->span) ? buffer : nullptr;
}

void written_by_host(const void* data, size_t bytes) {
  Buffer* const buffer = buffer_at(reinterpret_cast<uintptr_t>(data));
  if (!buffer) std::abort();
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(data) - buffer->data);
  buffer->from_host.emplace_back(offset, offset + bytes);
}

void written_by_nobody(const void* data) {
  Buffer* const buffer = buffer_at(reinterpret_cast<uintptr_t>(data));
  if (!buffer) std::abort();
  buffer->from_host.clear();
}

bool Buffer::is_from_host(size_t offset) const {
  return std::any_of(from_host.begin(), from_host.end(), [&](const auto& range) {
    return offset >= range.first && offset < range.second;
  });
}

Cell* Buffer::cell(size_t offset) {
  std::unique_ptr<Page>& page = pages[offset / Page::kBytes];
  if (!page) page = std::make_unique<Page>();
  return &page->cells[offset % Page::kBytes];
}

size_t Buffer::page_bytes(size_t page) const {
  return std::min(Page::kBytes, bytes - page * Page::kBytes);
}

void Buffer::save(size_t offset, size_t n) {
  for (size_t page = offset / Page::kBytes; page <= (offset + n - 1) / Page::kBytes; ++page) {
    cell(page * Page::kBytes);
    Page& own = *pages[page];
    if (own.saved) continue;
    own.saved = true;
    std::memcpy(own.before, data + page * Page::kBytes, page_bytes(page));
  }
}

bool is_noting_writes() { return noting; }

void WrittenBits::begin() {
  noting = true;
  for (auto& [end, buffer] : buffers())
    for (auto& [number, page] : buffer->pages) page->saved = false;
}

void WrittenBits::end() {
  noting = false;
  for (const Kept& kept : kept_) kept.buffer->pages[kept.page]->kept = false;
}

void WrittenBits::restore() {
  for (auto& [end, buffer] : buffers())
    for (auto& [number, page] : buffer->pages)
      if (page->saved)
        std::memcpy(buffer->data + number * Page::kBytes, page->before, buffer->page_bytes(number));
}

void WrittenBits::keep_and_restore() {
  for (auto& [end, buffer] : buffers())
    for (auto& [number, page] : buffer->pages) {
      if (!page->saved) continue;
      const unsigned char* const now = buffer->data + number * Page::kBytes;
      kept_.push_back({buffer.get(), number, {now, now + buffer->page_bytes(number)}});
      page->kept = true;
    }
  restore();
}

void WrittenBits::compare(const char* kept_under, const char* now_under) {
  const auto tell = [&](Buffer& buffer, size_t offset) {
    report("order-dependent",
           "byte %zu of a buffer of %zu has other bits under the schedule (%s) than under (%s), "
           "written at %s",
           offset, buffer.bytes, now_under, kept_under,
           to_string(buffer.cell(offset)->write.site).c_str());
  };
  const auto first_other = [](const unsigned char* was, const unsigned char* is, size_t n) {
    return static_cast<size_t>(std::mismatch(was, was + n, is).first - was);
  };
  for (const Kept& kept : kept_) {
    const size_t n = kept.bytes.size(), begin = kept.page * Page::kBytes;
    const size_t other = first_other(kept.bytes.data(), kept.buffer->data + begin, n);
    if (other < n) return tell(*kept.buffer, begin + other);
  }
  for (auto& [end, buffer] : buffers())
    for (auto& [number, page] : buffer->pages) {
      if (!page->saved || page->kept) continue;  // else only this launch has written to it
      const size_t n = buffer->page_bytes(number), begin = number * Page::kBytes;
      const size_t other = first_other(page->before, buffer->data + begin, n);
      if (other < n) return tell(*buffer, begin + other);
    }
}

}  // namespace cux::host
