// The library's facts and switches for Python, without an extension module of its own: torch.classes.fulgurite.Runtime().
#include <torch/custom_class.h>
#include <torch/library.h>

#include "fulgurite/config.h"

namespace fulgurite {
namespace {

struct Runtime : torch::CustomClassHolder {};
using Self = c10::intrusive_ptr<Runtime>;

using Row = std::tuple<std::string, std::string, std::vector<std::string>, std::string, std::string,
                       std::vector<int64_t>>;

/// name, device, variants, active, ran, [calls, tasks, threads, tile rows, tile columns, tiles, tiles skipped]
std::vector<Row> rows(const Self&) {
  std::vector<Row> table;
  for (const KernelReport& k : kernel_table())
    table.emplace_back(k.name, k.device, k.variants, k.active, k.ran,
                       std::vector<int64_t>{k.calls, k.tasks, k.threads, k.tile_rows,
                                            k.tile_columns, k.tiles, k.tiles_skipped});
  return table;
}

/// The names that each string argument takes: "attention.score" and its list.
std::vector<std::tuple<std::string, std::vector<std::string>>> named_choices(const Self&) {
  std::vector<std::tuple<std::string, std::vector<std::string>>> all;
  for (const ChoiceReport& choice : choices()) all.emplace_back(choice.argument, choice.names);
  return all;
}

}  // namespace
}  // namespace fulgurite

TORCH_LIBRARY_FRAGMENT(fulgurite, m) {
  using namespace fulgurite;
  m.class_<Runtime>("Runtime")
      .def(torch::init<>())
      .def("version", [](const Self&) { return std::string(version()); })
      .def("torch_version", [](const Self&) { return std::string(torch_version()); })
      .def("compiler", [](const Self&) { return compiler(); })
      .def("available_isas", [](const Self&) { return available_isas(); })
      .def("get_isa", [](const Self&) { return get_isa(); })
      .def("set_isa", [](const Self&, const std::string& name) { set_isa(name); })
      .def("inline_cost", [](const Self&) { return inline_cost(); })
      .def("set_inline_cost", [](const Self&, int64_t cost) { set_inline_cost(cost); })
      .def("measure_peak",
           [](const Self&, const std::string& dtype) { return measure_peak(dtype); })
      .def("choices", named_choices)
      .def("kernel_table", rows);
}
