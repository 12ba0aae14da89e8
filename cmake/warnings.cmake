# Warnings for our own files; torch's headers come in as SYSTEM.
add_library(fulgurite_warnings INTERFACE)
target_compile_options(fulgurite_warnings INTERFACE -Wall -Wextra -Wno-unused-parameter
  $<$<BOOL:${FULGURITE_WERROR}>:-Werror>)
