// The optional module fulgurite._C: build facts, control of the instruction set, and comparisons of long lists that Python
// would be slow at. Operators are reached through torch.ops and need none of this.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fulgurite/config.h"
#include "python/held_lists.h"

namespace py = pybind11;

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
  py::class_<fulgurite::HeldLists>(m, "HeldLists",
                                   "Which tensors stand in some lists and states, by address.")
      .def(py::init<const py::list&, const py::dict&>(), py::arg("lists"), py::arg("states"))
      .def("same", &fulgurite::HeldLists::same, py::arg("lists"), py::arg("states"));
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
