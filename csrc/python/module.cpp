// The optional module fulgurite._C: build facts, control of the instruction set, and comparisons of long lists that Python
// would be slow at. Operators are reached through torch.ops and need none of this.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fulgurite/config.h"

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
  m.doc() = "Build facts and instruction-set control of libfulgurite.";
  m.def("version", &fulgurite::version);
  m.def("torch_version", &fulgurite::torch_version);
  m.def("compiler", &fulgurite::compiler);
  m.def("available_isas", &fulgurite::available_isas,
        "Instruction sets of this machine that the build knows, lowest first.");
  m.def("get_isa", &fulgurite::get_isa);
  m.def("set_isa", &fulgurite::set_isa, py::arg("name"),
        "Select an instruction set; ValueError if the machine lacks it.");
  m.def("measure_peak", &fulgurite::measure_peak, py::arg("dtype"),
        "Operations a second of all threads on operands at hand, for products of a dtype.");
  m.def("inline_cost", &fulgurite::inline_cost);
  m.def("set_inline_cost", &fulgurite::set_inline_cost, py::arg("cost"),
        "Calls that cost less, in arithmetic or bytes, run on the calling thread alone.");
  m.def("same_objects", &same_objects, "Two lists hold the very same objects.");
  m.def("same_values", &same_values, py::arg("dicts"), py::arg("values"),
        "A list holds the very objects that are the values of some dicts, one after the other.");
  m.def(
      "choices",
      [] {
        py::dict choices;
        for (const fulgurite::ChoiceReport& choice : fulgurite::choices())
          choices[py::str(choice.argument)] = choice.names;
        return choices;
      },
      "The names that each string argument of the operators takes.");
  m.def("kernel_table", [] {
    py::list table;
    for (const fulgurite::KernelReport& kernel : fulgurite::kernel_table()) {
      py::dict row;
      row["name"] = kernel.name;
      row["variants"] = kernel.variants;
      row["active"] = kernel.active;
      row["ran"] = kernel.ran;
      row["calls"] = kernel.calls;
      row["tasks"] = kernel.tasks;
      row["threads"] = kernel.threads;
      row["tile"] = py::make_tuple(kernel.tile_rows, kernel.tile_columns);
      row["tiles"] = kernel.tiles;
      row["tiles_skipped"] = kernel.tiles_skipped;
      table.append(row);
    }
    return table;
  });
}
