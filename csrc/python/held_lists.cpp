#include "python/held_lists.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fulgurite {
namespace {

/// Reads what a tensor object holds without torch's headers for Python, which take 17 s: `_cdata` says
/// the address once, and where it stands in the object is the same for every tensor.
class TensorInside {
 public:
  /// False with a Python error set.
  bool find() {
    if (type_) return true;
    PyObject* const torch = PyImport_ImportModule("torch");
    PyObject* const core = torch ? PyObject_GetAttrString(torch, "_C") : nullptr;
    PyObject* const type = core ? PyObject_GetAttrString(core, "TensorBase") : nullptr;
    PyObject* const probe = type ? PyObject_CallMethod(torch, "empty", "i", 0) : nullptr;
    const size_t inside = probe ? number(probe, "_cdata") : 0;
    const size_t end =
        inside ? number(reinterpret_cast<PyObject*>(Py_TYPE(probe)), "__basicsize__") : 0;
    if (end) search(probe, inside, end);
    Py_XDECREF(probe);
    Py_XDECREF(core);
    Py_XDECREF(torch);
    if (!offset_ && !PyErr_Occurred())
      PyErr_SetString(PyExc_TypeError,
                      "fulgurite._C: tensors of this torch are not laid out as expected");
    if (PyErr_Occurred()) {
      Py_XDECREF(type);
      return false;
    }
    type_ = reinterpret_cast<PyTypeObject*>(type);  // kept for good, as torch keeps it
    return true;
  }

  /// Null for anything but a tensor.
  const void* operator()(PyObject* object) const {
    return PyType_IsSubtype(Py_TYPE(object), type_) ? at(object, offset_) : nullptr;
  }

 private:
  static size_t number(PyObject* object, const char* attribute) {
    PyObject* const value = PyObject_GetAttrString(object, attribute);
    if (!value) return 0;
    const size_t as_number = PyLong_AsSize_t(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? 0 : as_number;
  }

  void search(PyObject* probe, size_t inside, size_t end) {
    for (size_t at_byte = sizeof(PyObject); at_byte + sizeof(void*) <= end && !offset_;
         at_byte += sizeof(void*))
      if (reinterpret_cast<uintptr_t>(at(probe, at_byte)) == inside) offset_ = at_byte;
  }

  static const void* at(PyObject* object, size_t offset) {
    const void* inside;
    std::memcpy(static_cast<void*>(&inside), reinterpret_cast<const char*>(object) + offset,
                sizeof(inside));
    return inside;
  }

  PyTypeObject* type_ = nullptr;
  size_t offset_ = 0;
};

/// visit(address) for every address that counts, until it says false. False with a Python error set.
template <class Visit>
bool visit_addresses(PyObject* lists, PyObject* states, const Visit& visit) {
  static TensorInside inside;
  if (!inside.find()) return false;
  const Py_ssize_t num_lists = PyList_Size(lists);
  for (Py_ssize_t l = 0; l < num_lists; ++l) {
    PyObject* const list = PyList_GetItem(lists, l);
    const Py_ssize_t size = PyList_Size(list);
    if (size < 0) return false;        // no list
    if (!visit(nullptr)) return true;  // where a list begins
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyObject* const object = PyList_GetItem(list, i);
      if (!visit(object) || !visit(inside(object))) return true;
    }
  }
  PyObject *param, *state, *name, *value;
  for (Py_ssize_t at = 0; PyDict_Next(states, &at, &param, &state);) {
    if (!visit(param)) return true;
    if (!PyDict_Check(state)) {
      if (!visit(state)) return true;
      continue;
    }
    for (Py_ssize_t i = 0; PyDict_Next(state, &i, &name, &value);)
      if (!visit(name) || !visit(value) || !visit(inside(value))) return true;
  }
  return true;
}

}  // namespace

bool HeldLists::remember(PyObject* lists, PyObject* states) {
  addresses_.clear();
  return visit_addresses(lists, states, [this](const void* address) {
    addresses_.push_back(address);
    return true;
  });
}

bool HeldLists::compare(PyObject* lists, PyObject* states, bool* same) const {
  size_t i = 0;
  bool all = true;
  const bool looked = visit_addresses(lists, states, [&](const void* address) {
    all = i < addresses_.size() && addresses_[i] == address;
    ++i;
    return all;
  });
  *same = all && i == addresses_.size();
  return looked;
}

}  // namespace fulgurite
