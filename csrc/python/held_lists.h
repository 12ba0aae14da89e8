// Which tensors stand in some Python lists and dicts, by their addresses alone.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace fulgurite {

/// What optim/_plan.py's class of the same name does, where Python would be slow at it.
class HeldLists {
 public:
  HeldLists(const pybind11::list& lists, const pybind11::dict& states);
  bool same(const pybind11::list& lists, const pybind11::dict& states) const;

 private:
  std::vector<const void*> addresses_;
};

}  // namespace fulgurite
