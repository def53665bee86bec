# SPDX-License-Identifier: Apache-2.0
# Flags that belong to our own targets only: link espalier_flags privately.
add_library(espalier_flags INTERFACE)
target_compile_options(espalier_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wno-unused-parameter -Wno-restrict>)
if(ESPALIER_WERROR)
  target_compile_options(espalier_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(ESPALIER_SANITIZE)
  string(REPLACE ";" "," sanitizers "${ESPALIER_SANITIZE}")
  target_compile_options(espalier_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${sanitizers} -fno-omit-frame-pointer -fno-sanitize-recover=undefined>)
  target_link_options(espalier_flags INTERFACE -fsanitize=${sanitizers})
endif()

find_program(CCACHE ccache)
if(CCACHE AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
if(NOT CMAKE_BUILD_TYPE AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_BUILD_TYPE Release)
endif()
