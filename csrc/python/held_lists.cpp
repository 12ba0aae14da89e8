#include "python/held_lists.h"

#include <cstring>

namespace py = pybind11;

namespace fulgurite {
namespace {

/// Reads what a tensor object holds without torch's headers for Python, which take 17 s: `_cdata` says
/// the address once, and where it stands in the object is the same for every tensor.
class TensorInside {
 public:
  TensorInside() {
    const py::module_ torch = py::module_::import("torch");
    type_ = reinterpret_cast<PyTypeObject*>(torch.attr("_C").attr("TensorBase").ptr());
    const py::object probe = torch.attr("empty")(0, py::arg("device") = "cpu");
    const auto inside = py::cast<uintptr_t>(probe.attr("_cdata"));
    const Py_ssize_t end = Py_TYPE(probe.ptr())->tp_basicsize;
    for (offset_ = sizeof(PyObject); reinterpret_cast<uintptr_t>(at(probe.ptr())) != inside;
         offset_ += sizeof(void*))
      if (offset_ + 2 * static_cast<Py_ssize_t>(sizeof(void*)) > end)
        throw py::type_error("fulgurite._C: tensors of this torch are not laid out as expected");
  }

  /// Null for anything but a tensor.
  const void* operator()(PyObject* object) const {
    if (!PyType_IsSubtype(Py_TYPE(object), type_)) return nullptr;
    return at(object);
  }

 private:
  const void* at(PyObject* object) const {
    const void* inside;
    std::memcpy(static_cast<void*>(&inside), reinterpret_cast<const char*>(object) + offset_,
                sizeof(inside));
    return inside;
  }

  PyTypeObject* type_;
  Py_ssize_t offset_ = 0;
};

/// visit(address) for every address that counts, until it says false.
template <class Visit>
bool visit_addresses(const py::list& lists, const py::dict& states, const Visit& visit) {
  static const TensorInside inside;
  for (const py::handle entry : lists) {
    const auto list = py::reinterpret_borrow<py::list>(entry);
    if (!visit(nullptr)) return false;  // where a list begins
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list.ptr()); ++i) {
      PyObject* const object = PyList_GET_ITEM(list.ptr(), i);
      if (!visit(object) || !visit(inside(object))) return false;
    }
  }
  PyObject *param, *state, *name, *value;
  for (Py_ssize_t at = 0; PyDict_Next(states.ptr(), &at, &param, &state);) {
    if (!visit(param)) return false;
    if (!PyDict_Check(state)) {
      if (!visit(state)) return false;
      continue;
    }
    for (Py_ssize_t i = 0; PyDict_Next(state, &i, &name, &value);)
      if (!visit(name) || !visit(value) || !visit(inside(value))) return false;
  }
  return true;
}

}  // namespace

HeldLists::HeldLists(const py::list& lists, const py::dict& states) {
  visit_addresses(lists, states, [this](const void* address) {
    addresses_.push_back(address);
    return true;
  });
}

bool HeldLists::same(const py::list& lists, const py::dict& states) const {
  size_t i = 0;
  const bool all = visit_addresses(lists, states, [&](const void* address) {
    const bool is_next = i < addresses_.size() && addresses_[i] == address;
    ++i;
    return is_next;
  });
  return all && i == addresses_.size();
}

}  // namespace fulgurite
