# The executor of kernels on the host (csrc/cuda/host), test only; it needs no CUDA.
set(FULGURITE_EXECUTOR barriers checker copies counts executor fiber instrument machine memory report settings shared_memory
    tensor_cores)

# Files of csrc: kernels, without torch, and the torch side. nvcc and g++ make the library's half for cards of them, and g++ alone
# the libraries of tests/cuda_on_host, whose kernels run on the host.
set(FULGURITE_CUDA_KERNELS cuda/table amp/cuda/instances/amp optim/cuda/instances/adamw optim/cuda/instances/adamw_8bit
    optim/cuda/instances/split_master)
set(FULGURITE_CUDA_TORCH_SIDE cuda/call amp/cuda/amp_cuda optim/cuda/adamw_cuda)
# Kernels that no torch side calls yet: compiled and held to budgets, and in no library.
set(FULGURITE_CUDA_UNCALLED
  attention/cuda/instances/attention_backward
  attention/cuda/instances/attention_forward
  attention/cuda/instances/backward_bfloat16_general_narrow
  attention/cuda/instances/backward_bfloat16_general_wide
  attention/cuda/instances/backward_bfloat16_plain_narrow
  attention/cuda/instances/backward_bfloat16_plain_wide
  attention/cuda/instances/backward_float16_general_narrow
  attention/cuda/instances/backward_float16_general_wide
  attention/cuda/instances/backward_float16_plain_narrow
  attention/cuda/instances/backward_float16_plain_wide
  attention/cuda/instances/backward_float32
  attention/cuda/instances/forward_bfloat16_general_narrow
  attention/cuda/instances/forward_bfloat16_general_wide
  attention/cuda/instances/forward_bfloat16_plain_narrow
  attention/cuda/instances/forward_bfloat16_plain_wide
  attention/cuda/instances/forward_float16_general_narrow
  attention/cuda/instances/forward_float16_general_wide
  attention/cuda/instances/forward_float16_plain_narrow
  attention/cuda/instances/forward_float16_plain_wide
  attention/cuda/instances/forward_float32)

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
set(FULGURITE_CUDA_TARGETS ${CMAKE_CUDA_ARCHITECTURES})
list(TRANSFORM FULGURITE_CUDA_TARGETS REPLACE "^([0-9]+)-real$" "sm_\\1")
list(TRANSFORM FULGURITE_CUDA_TARGETS REPLACE "^([0-9]+)-virtual$" "compute_\\1")
list(JOIN FULGURITE_CUDA_TARGETS " " FULGURITE_CUDA_TARGETS)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

# -fmad=false: every fused multiply-add is written as one, as on the CPU. nvcc contracts a·b + c·d otherwise, and the execution
# of kernels on the host could not show it.
function(fulgurite_cuda_options target)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -Xcompiler=-Wall,-Wextra,-Wno-unused-parameter>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${FULGURITE_WERROR}>>:-Werror=all-warnings -Xcompiler=-Werror>)
endfunction()

# What ptxas says of each kernel lies beside the object: scripts/cuda_budgets.py compares it with cuda-budgets.json.
function(_fulgurite_cuda_objects target)
  list(TRANSFORM ARGN PREPEND ${PROJECT_SOURCE_DIR}/csrc/ OUTPUT_VARIABLE sources)
  list(TRANSFORM sources APPEND .cu)
  add_library(${target} OBJECT ${sources})
  fulgurite_cuda_options(${target})
  target_compile_options(${target} PRIVATE -Xptxas=-v)
  set_target_properties(${target} PROPERTIES
    CUDA_COMPILER_LAUNCHER "${PROJECT_SOURCE_DIR}/scripts/keep_ptxas_info.sh;${CMAKE_CUDA_COMPILER_LAUNCHER}")
endfunction()
_fulgurite_cuda_objects(fulgurite_cuda_kernels ${FULGURITE_CUDA_KERNELS})
_fulgurite_cuda_objects(fulgurite_cuda_uncalled ${FULGURITE_CUDA_UNCALLED})

# CUDA's runtime is inside the library (CMake links the static one) and hidden, so that it meets no other copy and none has to be
# installed. It looks for the driver when it is first called.
function(fulgurite_link_cuda target)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:fulgurite_cuda_kernels>)
  target_link_options(${target} PRIVATE -Wl,--exclude-libs,libcudart_static.a)
endfunction()
