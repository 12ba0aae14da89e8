// Linked into every kernel test: asks the operating system for what the machine's sets need before the first test. Linux hands out
// the tiles of AMX to a process that asks, and takes them back when it starts another program, as run_if_isa does.
#include <string>
#include <vector>

#include "fulgurite/config.h"

namespace {
const std::vector<std::string> kSets = fulgurite::available_isas();
}
