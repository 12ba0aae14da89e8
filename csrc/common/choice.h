// String arguments that name one of a few things. A table of {name, value} is all that there is of a choice: the check, what
// turns a name into a value, the list that the docs are tested against and Python read it, so no name can be known to one of
// them alone.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace fulgurite {

template <class E>
struct Named {
  std::string_view name;
  E value;
};

template <class E, std::size_t n>
constexpr std::optional<E> find_choice(const Named<E> (&table)[n], std::string_view name) {
  for (const Named<E>& entry : table)
    if (entry.name == name) return entry.value;
  return std::nullopt;
}

}  // namespace fulgurite
