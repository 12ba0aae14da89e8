// The optional module fulgurite._C: build facts and control of the instruction set. Operators are reached through torch.ops
// and need none of this.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fulgurite/config.h"

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
  m.def("inline_cost", &fulgurite::inline_cost);
  m.def("set_inline_cost", &fulgurite::set_inline_cost, py::arg("cost"),
        "Calls that cost less, in arithmetic or bytes, run on the calling thread alone.");
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
