// A table in a device's memory that is kept from one call to the next, so that only what has changed is written to it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace fulgurite {

struct KeptTable {
  at::Tensor memory;
  std::vector<uint8_t> bytes;  // of what was written there
};

/// What a caller lends to the operator that it calls on this thread; null in any other call.
inline thread_local KeptTable* lent_table = nullptr;

class LendTable {
 public:
  explicit LendTable(KeptTable& table) { lent_table = &table; }
  ~LendTable() { lent_table = nullptr; }
  LendTable(const LendTable&) = delete;
  LendTable& operator=(const LendTable&) = delete;
};

}  // namespace fulgurite
