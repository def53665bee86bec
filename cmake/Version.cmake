# SPDX-License-Identifier: Apache-2.0
# What `espalier --version` says of the build, as definitions for the one unit that prints it: version_definitions.
find_package(Git QUIET)
set(commit "")
if(Git_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} rev-parse --short=12 HEAD WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT commit)
  set(commit unknown)
endif()
set(toolkit "no CUDA")
if(ESPALIER_HAS_CUDA)
  set(toolkit ${CUDAToolkit_VERSION})
endif()
set(version_definitions
  ESPALIER_COMMIT="${commit}" ESPALIER_LIBTORCH="${LibTorch_VERSION}" ESPALIER_CUDA_TOOLKIT="${toolkit}"
  ESPALIER_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
