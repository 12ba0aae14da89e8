# Imported target fulgurite_torch: torch's headers, libtorch_cpu and libc10, taken from the torch of FULGURITE_PYTHON_EXECUTABLE.
# find_package(Torch) is avoided on purpose: with a CUDA build of torch it demands a whole CUDA toolkit.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__.split('+')[0], torch.compiled_with_cxx11_abi(), sep=';')"
  OUTPUT_VARIABLE _torch OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE _failed)
if(_failed)
  message(FATAL_ERROR "fulgurite needs torch in the environment of ${Python_EXECUTABLE}: pip install torch==2.13.0")
endif()
list(GET _torch 0 FULGURITE_TORCH_DIR)
list(GET _torch 1 _version)
set(FULGURITE_TORCH_VERSION ${_version} CACHE INTERNAL "What this folder is built against; setup.py reads it")
list(GET _torch 2 _cxx11)
if(FULGURITE_TORCH_VERSION VERSION_LESS 2.11 OR FULGURITE_TORCH_VERSION VERSION_GREATER_EQUAL 2.16)
  message(FATAL_ERROR "fulgurite supports torch 2.11 to 2.15, found ${FULGURITE_TORCH_VERSION}")
endif()
if(NOT _cxx11 STREQUAL "True")
  message(FATAL_ERROR "fulgurite needs a torch built with the C++11 ABI")
endif()
set(FULGURITE_TORCH_LIB_DIR ${FULGURITE_TORCH_DIR}/lib)
message(STATUS "torch ${FULGURITE_TORCH_VERSION} in ${FULGURITE_TORCH_DIR}")

add_library(fulgurite_torch INTERFACE)
target_include_directories(fulgurite_torch SYSTEM INTERFACE
  $<BUILD_INTERFACE:${FULGURITE_TORCH_DIR}/include>
  $<BUILD_INTERFACE:${FULGURITE_TORCH_DIR}/include/torch/csrc/api/include>)
target_link_libraries(fulgurite_torch INTERFACE
  $<BUILD_INTERFACE:${FULGURITE_TORCH_LIB_DIR}/libtorch_cpu.so>
  $<BUILD_INTERFACE:${FULGURITE_TORCH_LIB_DIR}/libc10.so>)
