// Checks and reads the tables of choice.h, and makes them known to fulgurite::choices().
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/choice.h"

namespace fulgurite {

/// "'softmax', 'relu2' or 'laplace'"
template <class E, size_t n>
std::string names_of(const Named<E> (&table)[n]) {
  std::string text;
  for (size_t i = 0; i < n; ++i) {
    if (i > 0) text += i + 1 < n ? ", " : " or ";
    text += "'" + std::string(table[i].name) + "'";
  }
  return text;
}

/// ValueError for a name that the table lacks.
template <class E, size_t n>
E check_choice(const char* op, const char* argument, const Named<E> (&table)[n],
               std::string_view given) {
  const std::optional<E> value = find_choice(table, given);
  FULGURITE_CHECK_VALUE(value.has_value(), "expected ", argument, " ", names_of(table), ", got '",
                        given, "'");
  return *value;
}

/// The value of a name that was checked.
template <class E, size_t n>
E choice_of(const Named<E> (&table)[n], std::string_view name) {
  const std::optional<E> value = find_choice(table, name);
  TORCH_INTERNAL_ASSERT(value.has_value(), "'", name, "' was not checked");
  return *value;
}

/// Adds a choice to fulgurite::choices(): one static object for each.
class RegisteredChoice {
 public:
  /// `argument`: "attention.score"
  template <class E, size_t n>
  RegisteredChoice(const char* argument, const Named<E> (&table)[n]) {
    std::vector<std::string> names;
    for (const Named<E>& entry : table) names.emplace_back(entry.name);
    add(argument, std::move(names));
  }

 private:
  static void add(const char* argument, std::vector<std::string> names);
};

}  // namespace fulgurite
