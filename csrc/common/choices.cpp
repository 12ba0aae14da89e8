#include "common/check_choice.h"
#include "fulgurite/config.h"

namespace fulgurite {
namespace {

std::vector<ChoiceReport>& choice_registry() {
  static std::vector<ChoiceReport> choices;
  return choices;
}

}  // namespace

void RegisteredChoice::add(const char* argument, std::vector<std::string> names) {
  choice_registry().push_back({argument, std::move(names)});
}

std::vector<ChoiceReport> choices() { return choice_registry(); }

}  // namespace fulgurite
