# Imported target fulgurite_torch: torch's headers, libtorch_cpu and libc10, taken from the torch of Python_EXECUTABLE, or from an
# unpacked one that need not be importable here, another version for example.
# find_package(Torch) is avoided on purpose: with a CUDA build of torch it demands a whole CUDA toolkit.
set(FULGURITE_TORCH_DIR "" CACHE PATH "The folder of an unpacked torch; empty: the torch of Python_EXECUTABLE")
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
if(FULGURITE_TORCH_DIR)
  foreach(_file version.py lib/libtorch_cpu.so lib/libc10.so)
    if(NOT EXISTS ${FULGURITE_TORCH_DIR}/${_file})
      message(FATAL_ERROR "FULGURITE_TORCH_DIR: ${FULGURITE_TORCH_DIR} is no folder of torch, it has no ${_file}")
    endif()
  endforeach()
  set(_dir ${FULGURITE_TORCH_DIR})
  file(STRINGS ${_dir}/version.py _version REGEX "^__version__")
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" _version "${_version}")
  file(STRINGS ${_dir}/lib/libc10.so _cxx11 REGEX "__cxx11" LIMIT_COUNT 1)
else()
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__.split('+')[0], torch.compiled_with_cxx11_abi(), sep=';')"
    OUTPUT_VARIABLE _torch OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE _failed)
  if(_failed)
    message(FATAL_ERROR "fulgurite needs torch in the environment of ${Python_EXECUTABLE}: pip install torch==2.13.0")
  endif()
  list(GET _torch 0 _dir)
  list(GET _torch 1 _version)
  list(GET _torch 2 _cxx11)
endif()
set(FULGURITE_TORCH_VERSION ${_version} CACHE INTERNAL "What this folder is built against; setup.py reads it")
if(FULGURITE_TORCH_VERSION VERSION_LESS 2.11 OR FULGURITE_TORCH_VERSION VERSION_GREATER_EQUAL 2.16)
  message(FATAL_ERROR "fulgurite supports torch 2.11 to 2.15, found ${FULGURITE_TORCH_VERSION}")
endif()
if(NOT _cxx11 OR _cxx11 STREQUAL "False")
  message(FATAL_ERROR "fulgurite needs a torch built with the C++11 ABI")
endif()
message(STATUS "torch ${FULGURITE_TORCH_VERSION} in ${_dir}")

add_library(fulgurite_torch INTERFACE)
target_include_directories(fulgurite_torch SYSTEM INTERFACE
  $<BUILD_INTERFACE:${_dir}/include>
  $<BUILD_INTERFACE:${_dir}/include/torch/csrc/api/include>)
target_link_libraries(fulgurite_torch INTERFACE
  $<BUILD_INTERFACE:${_dir}/lib/libtorch_cpu.so>
  $<BUILD_INTERFACE:${_dir}/lib/libc10.so>)
