// Which tensors stand in some Python lists and dicts, by their addresses alone.
#pragma once

#include <Python.h>

#include <vector>

namespace fulgurite {

/// What optim/_plan.py's class of the same name does, where Python would be slow at it. `lists` is a
/// list of lists, `states` a dict. Where false comes back a Python error is set.
class HeldLists {
 public:
  bool remember(PyObject* lists, PyObject* states);
  bool compare(PyObject* lists, PyObject* states, bool* same) const;

 private:
  std::vector<const void*> addresses_;
};

}  // namespace fulgurite
