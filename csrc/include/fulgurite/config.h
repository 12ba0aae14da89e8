// What was built and what runs: the instruction sets, the kernels, the torch it was built with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#define FULGURITE_API __attribute__((visibility("default")))

namespace fulgurite {

struct KernelReport {
  std::string name;
  std::string device;                 // "cpu", "cuda"
  std::vector<std::string> variants;  // instruction sets, or a card's architectures, of its code
  std::string active;                 // of the CPU's: the one that a call in bfloat16 runs now
  std::string ran;                    // the one that the last call ran
  int64_t calls;                      // since the library was loaded
  int64_t tasks;
  int64_t threads;  // that the last call was spread over
  // Kernels that work in tiles: the tile of the last call, and the tiles since the library was loaded. 0 for others.
  int64_t tile_rows, tile_columns, tiles, tiles_skipped;
};

/// The names that a string argument takes: argument "attention.score", names {"softmax", "relu2", "laplace"}.
struct ChoiceReport {
  std::string argument;
  std::vector<std::string> names;
};

FULGURITE_API const char* version();
/// "2.13.0": the torch whose headers the library was compiled with.
FULGURITE_API const char* torch_version();
FULGURITE_API std::string compiler();
/// Names of the sets that this machine has and this build knows, lowest first.
FULGURITE_API std::vector<std::string> available_isas();
FULGURITE_API std::string get_isa();
/// Selects an instruction set; throws std::invalid_argument if it is unknown or the machine lacks it.
FULGURITE_API void set_isa(const std::string& name);
/// Calls that cost less, in arithmetic or bytes, run on the calling thread alone. The bits do not depend on it.
FULGURITE_API int64_t inline_cost();
FULGURITE_API void set_inline_cost(int64_t cost);
FULGURITE_API std::vector<KernelReport> kernel_table();
FULGURITE_API std::vector<ChoiceReport> choices();
/// Multiplications and additions a second of torch's threads together, on operands at hand, of float64, float32 or bfloat16
/// products as the set in use makes them. Takes a fifth of a second.
FULGURITE_API double measure_peak(const std::string& dtype);

}  // namespace fulgurite
