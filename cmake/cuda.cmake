# The executor of kernels on the host (csrc/cuda/host), test only; it needs no CUDA.
set(FULGURITE_EXECUTOR barriers checker copies counts executor fiber instrument machine memory report settings shared_memory
    tensor_cores)

# The CUDA half: FULGURITE_CUDA=AUTO builds it where nvcc is found. It needs no CUDA build of torch: kernels see no header of
# torch, and the library takes streams and memory from libc10.
set(FULGURITE_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE FULGURITE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(FULGURITE_CUDA_ARCHS "80;86;89;90" CACHE STRING "Compute capabilities; later cards take the PTX of the highest")

if(NOT FULGURITE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FULGURITE_CUDA: expected AUTO, ON or OFF, got ${FULGURITE_CUDA}")
endif()
set(FULGURITE_WITH_CUDA OFF)
if(NOT FULGURITE_CUDA STREQUAL "OFF" AND NOT FULGURITE_KERNELS_ONLY)
  find_program(FULGURITE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(FULGURITE_NVCC)
    set(FULGURITE_WITH_CUDA ON)
  elseif(FULGURITE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FULGURITE_CUDA=ON needs nvcc: on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin")
  endif()
endif()
if(NOT FULGURITE_WITH_CUDA)
  message(STATUS "CUDA: not built")
  return()
endif()

set(CMAKE_CUDA_COMPILER ${FULGURITE_NVCC})
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
list(TRANSFORM FULGURITE_CUDA_ARCHS APPEND -real OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(SORT FULGURITE_CUDA_ARCHS COMPARE NATURAL ORDER DESCENDING)
list(GET FULGURITE_CUDA_ARCHS 0 _highest)
list(APPEND CMAKE_CUDA_ARCHITECTURES ${_highest}-virtual)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 knows no later one for nvcc 13
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

# -fmad=false: every fused multiply-add is written as one, as on the CPU. nvcc contracts a·b + c·d otherwise, and the execution
# of kernels on the host could not show it.
function(fulgurite_cuda_options target)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -Xcompiler=-Wall,-Wextra,-Wno-unused-parameter>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${FULGURITE_WERROR}>>:-Werror=all-warnings -Xcompiler=-Werror>)
endfunction()
