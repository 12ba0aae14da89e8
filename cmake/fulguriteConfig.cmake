# find_package(fulgurite) gives fulgurite::fulgurite: headers, and the library for the caller's torch, which is
#   FULGURITE_TORCH_DIR, the folder of the torch package or an unpacked libtorch, if set;
#   what find_package(Torch) found before, otherwise.
get_filename_component(_fulgurite_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(FULGURITE_TORCH_DIR)
  set(_fulgurite_torch "${FULGURITE_TORCH_DIR}")
elseif(TARGET torch_cpu)
  get_target_property(_fulgurite_torch torch_cpu LOCATION)
  get_filename_component(_fulgurite_torch "${_fulgurite_torch}/../.." ABSOLUTE)
else()
  set(fulgurite_FOUND FALSE)
  set(fulgurite_NOT_FOUND_MESSAGE "set FULGURITE_TORCH_DIR to the folder of the torch package, or find_package(Torch) first")
  return()
endif()

# torch's C++ ABI changes with its minor version.
set(_fulgurite_header "${_fulgurite_torch}/include/torch/headeronly/version.h")
if(NOT EXISTS "${_fulgurite_header}")
  set(fulgurite_FOUND FALSE)
  set(fulgurite_NOT_FOUND_MESSAGE "${_fulgurite_torch} is no folder of torch: it has no ${_fulgurite_header}")
  return()
endif()
file(STRINGS "${_fulgurite_header}" _fulgurite_minor REGEX "#define TORCH_VERSION_(MAJOR|MINOR) ")
string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*" "\\1.\\2" _fulgurite_minor "${_fulgurite_minor}")
set(_fulgurite_library "${_fulgurite_root}/lib/torch${_fulgurite_minor}/libfulgurite.so")
if(NOT EXISTS "${_fulgurite_library}")
  file(GLOB _fulgurite_held RELATIVE "${_fulgurite_root}/lib" "${_fulgurite_root}/lib/torch*")
  string(REPLACE ";" ", " _fulgurite_held "${_fulgurite_held}")
  set(fulgurite_FOUND FALSE)
  set(fulgurite_NOT_FOUND_MESSAGE
      "no library for torch ${_fulgurite_minor} of ${_fulgurite_torch}; ${_fulgurite_root}/lib holds ${_fulgurite_held}")
  return()
endif()

if(NOT TARGET fulgurite::fulgurite)
  add_library(fulgurite::fulgurite SHARED IMPORTED)
  set_target_properties(fulgurite::fulgurite PROPERTIES
    IMPORTED_LOCATION "${_fulgurite_library}"
    IMPORTED_SONAME libfulgurite.so
    INTERFACE_INCLUDE_DIRECTORIES "${_fulgurite_root}/include")
  if(FULGURITE_TORCH_DIR)
    set_property(TARGET fulgurite::fulgurite APPEND PROPERTY INTERFACE_INCLUDE_DIRECTORIES
      "${FULGURITE_TORCH_DIR}/include" "${FULGURITE_TORCH_DIR}/include/torch/csrc/api/include")
    set_property(TARGET fulgurite::fulgurite APPEND PROPERTY INTERFACE_LINK_LIBRARIES
      "${FULGURITE_TORCH_DIR}/lib/libtorch_cpu.so" "${FULGURITE_TORCH_DIR}/lib/libc10.so" "${FULGURITE_TORCH_DIR}/lib/libtorch.so")
  else()
    set_property(TARGET fulgurite::fulgurite APPEND PROPERTY INTERFACE_LINK_LIBRARIES torch_cpu c10)
  endif()
endif()
