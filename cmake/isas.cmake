# The instruction sets, a row each. To add one: a row here, what the machine must have in csrc/cpu/isa.cpp, and what the compiler's
# macros do not already choose in csrc/simd (docs/internals/instruction-sets.md).
#
#   PARENT    the set whose function runs where a kernel has none for this one
#   PRODUCTS  what it adds is products of bfloat16: only kernels that multiply are compiled for it, and for that type alone
#   FLOAT64   kernels serve float64 here too; other sets leave it to the nearest parent that does
#   FLAGS     the compiler's
set(FULGURITE_ISA_ROWS "")
macro(fulgurite_isa name)
  cmake_parse_arguments(ROW "PRODUCTS;FLOAT64" "ARCH;PARENT" "FLAGS" ${ARGN})
  list(APPEND FULGURITE_ISA_ROWS ${name})
  foreach(column ARCH PARENT PRODUCTS FLOAT64 FLAGS)
    set(FULGURITE_ISA_${column}_${name} ${ROW_${column}})
  endforeach()
endmacro()

set(_x86_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND _x86_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)  # g++ 12's own intrinsics warn falsely
endif()

fulgurite_isa(baseline    ARCH any    PARENT baseline    FLOAT64)
fulgurite_isa(avx2        ARCH x86_64 PARENT baseline    FLOAT64  FLAGS -mavx2 -mfma -mf16c -mbmi -mbmi2)
fulgurite_isa(avx512      ARCH x86_64 PARENT avx2                 FLAGS ${_x86_avx512})
fulgurite_isa(avx512_bf16 ARCH x86_64 PARENT avx512      PRODUCTS FLAGS ${_x86_avx512} -mavx512bf16)
fulgurite_isa(amx         ARCH x86_64 PARENT avx512_bf16 PRODUCTS FLAGS ${_x86_avx512} -mavx512bf16 -mamx-tile -mamx-bf16)
fulgurite_isa(neon        ARCH arm64  PARENT baseline    FLOAT64  FLAGS -march=armv8.2-a)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(_arch arm64)
else()
  set(_arch x86_64)
endif()
set(_isas "")
foreach(_isa ${FULGURITE_ISA_ROWS})
  if(FULGURITE_ISA_ARCH_${_isa} MATCHES "any|${_arch}")
    list(APPEND _isas ${_isa})
  endif()
endforeach()
set(FULGURITE_ISAS ${_isas} CACHE STRING "Instruction sets to compile, baseline among them")
foreach(_isa ${FULGURITE_ISAS})
  if(NOT _isa IN_LIST _isas)
    message(FATAL_ERROR "FULGURITE_ISAS: expected sets among ${_isas}, got ${_isa}")
  endif()
endforeach()
if(NOT baseline IN_LIST FULGURITE_ISAS)
  message(FATAL_ERROR "FULGURITE_ISAS: expected baseline among the sets, got ${FULGURITE_ISAS}")
endif()

# The sets of FULGURITE_ISAS that a kernel or test is compiled for: all of them if it multiplies (PRODUCTS), else (VECTORS) those that
# add more than products.
function(fulgurite_isas_of kind result)
  set(isas "")
  foreach(isa ${FULGURITE_ISAS})
    if(kind STREQUAL "PRODUCTS" OR NOT FULGURITE_ISA_PRODUCTS_${isa})
      list(APPEND isas ${isa})
    endif()
  endforeach()
  set(${result} ${isas} PARENT_SCOPE)
endfunction()
