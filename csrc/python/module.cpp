// The optional module fulgurite._C: comparisons of long lists that Python would be slow at.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

bool same_objects(const py::list& some, const py::list& others) {
  if (some.size() != others.size()) return false;
  for (size_t i = 0; i < some.size(); ++i)
    if (PyList_GET_ITEM(some.ptr(), i) != PyList_GET_ITEM(others.ptr(), i)) return false;
  return true;
}

bool same_values(const py::list& dicts, const py::list& values) {
  size_t n = 0;
  for (size_t i = 0; i < dicts.size(); ++i) {
    PyObject *key, *value, *const dict = PyList_GET_ITEM(dicts.ptr(), i);
    if (!PyDict_Check(dict)) return false;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); ++n)
      if (n >= values.size() || PyList_GET_ITEM(values.ptr(), n) != value) return false;
  }
  return n == values.size();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Comparisons of long lists.";
  m.def("same_objects", &same_objects, "Two lists hold the very same objects.");
  m.def("same_values", &same_values, py::arg("dicts"), py::arg("values"),
        "A list holds the very objects that are the values of some dicts, one after the other.");
}
