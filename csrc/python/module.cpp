// The optional module fulgurite._C: comparisons of long lists that Python would be slow at.
#include <pybind11/pybind11.h>

#include "python/held_lists.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Comparisons of long lists.";
  py::class_<fulgurite::HeldLists>(m, "HeldLists",
                                   "Which tensors stand in some lists and states, by address.")
      .def(py::init<const py::list&, const py::dict&>(), py::arg("lists"), py::arg("states"))
      .def("same", &fulgurite::HeldLists::same, py::arg("lists"), py::arg("states"));
}
