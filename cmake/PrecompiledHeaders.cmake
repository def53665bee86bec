# SPDX-License-Identifier: Apache-2.0
# Reading libtorch's tensor takes most of a unit's time, so it is read once for targets that are compiled alike. Only
# headers of other people, and the few that nearly every unit of a target includes: a unit still includes what it uses,
# which the `dev` preset checks by building without.

# espalier_precompile(TARGET HEADERS...)
function(espalier_precompile target)
  target_precompile_headers(${target} PRIVATE ${ARGN})
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)  # ccache wants it
  endif()
endfunction()

# espalier_precompile_as(FROM TARGETS...): with the headers of FROM.
function(espalier_precompile_as from)
  foreach(target ${ARGN})
    target_precompile_headers(${target} REUSE_FROM ${from})
    if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
      target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
    endif()
  endforeach()
endfunction()
