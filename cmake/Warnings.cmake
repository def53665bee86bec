# SPDX-License-Identifier: Apache-2.0
# Flags that belong to our own targets only: link espalier_flags privately.
add_library(espalier_flags INTERFACE)
target_compile_options(espalier_flags INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wshadow -Wno-unused-parameter>)
# GCC 12 sees copies of impossible sizes in every `"text" + std::to_string(n)` (its bugs 105329 and 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(espalier_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict -Wno-stringop-overflow -Wno-array-bounds>)
endif()
if(ESPALIER_WERROR)
  target_compile_options(espalier_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-Werror>)
endif()
if(ESPALIER_SANITIZE)
  string(REPLACE ";" "," sanitizers "${ESPALIER_SANITIZE}")
  target_compile_options(espalier_flags INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${sanitizers} -fno-omit-frame-pointer -fno-sanitize-recover=undefined>)
  target_link_options(espalier_flags INTERFACE -fsanitize=${sanitizers})
endif()

# Paths below this folder are hashed as relative ones, so that another clone of the same sources finds what this one built.
find_program(CCACHE ccache)
if(CCACHE AND PROJECT_IS_TOP_LEVEL)
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=true
    CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()
if(NOT CMAKE_BUILD_TYPE AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_BUILD_TYPE Release)
endif()
