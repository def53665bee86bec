# SPDX-License-Identifier: Apache-2.0
# Reading libtorch's tensor takes most of a unit's time, so it is read once for targets that are compiled alike. Only
# headers of other people, and the few that nearly every unit of a target includes: a unit still includes what it uses,
# which the `dev` preset checks by building without.

set(pch_options "")
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  set(pch_options $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)  # ccache wants it
endif()

# espalier_precompile(TARGET HEADERS...)
function(espalier_precompile target)
  target_precompile_headers(${target} PRIVATE ${ARGN})
  target_compile_options(${target} PRIVATE ${pch_options})
endfunction()

# espalier_precompile_as(FROM TARGETS...): with the headers of FROM.
function(espalier_precompile_as from)
  foreach(target ${ARGN})
    target_precompile_headers(${target} REUSE_FROM ${from})
    target_compile_options(${target} PRIVATE ${pch_options})
  endforeach()
endfunction()
