# SPDX-License-Identifier: Apache-2.0
# Finds libtorch without a CUDA toolkit (the package's own TorchConfig.cmake is fatal without one).
# Looks in LibTorch_ROOT (a folder with include/ and lib/), then in the pinned wheel that ./dev installs,
# then in the torch of the active Python. Defines LibTorch::cpu and, where there is one, LibTorch::cuda.
if(NOT LibTorch_ROOT)
  set(LibTorch_ROOT "$ENV{LibTorch_ROOT}")
endif()
if(NOT LibTorch_ROOT AND EXISTS ${CMAKE_CURRENT_LIST_DIR}/../.deps/libtorch/torch/lib)
  get_filename_component(LibTorch_ROOT ${CMAKE_CURRENT_LIST_DIR}/../.deps/libtorch/torch ABSOLUTE)
endif()
if(NOT LibTorch_ROOT)
  find_program(LibTorch_PYTHON NAMES python3)
  mark_as_advanced(LibTorch_PYTHON)
  if(LibTorch_PYTHON)
    execute_process(COMMAND ${LibTorch_PYTHON} -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE LibTorch_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
set(LibTorch_ROOT "${LibTorch_ROOT}" CACHE PATH "Folder of libtorch: the one that holds include/ and lib/" FORCE)

# What was found for another root must not stay.
if(NOT LibTorch_INCLUDE_DIR STREQUAL "${LibTorch_ROOT}/include")
  unset(LibTorch_INCLUDE_DIR CACHE)
  foreach(name c10 torch_cpu torch c10_cuda torch_cuda)
    unset(LibTorch_${name}_LIBRARY CACHE)
  endforeach()
endif()
find_path(LibTorch_INCLUDE_DIR ATen/core/Tensor.h PATHS ${LibTorch_ROOT}/include NO_DEFAULT_PATH)
foreach(name c10 torch_cpu torch c10_cuda torch_cuda)
  find_library(LibTorch_${name}_LIBRARY ${name} PATHS ${LibTorch_ROOT}/lib NO_DEFAULT_PATH)
endforeach()
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_c10_LIBRARY LibTorch_torch_cpu_LIBRARY LibTorch_torch_LIBRARY
                 LibTorch_c10_cuda_LIBRARY LibTorch_torch_cuda_LIBRARY)
if(LibTorch_INCLUDE_DIR)
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS ${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h line REGEX "define TORCH_VERSION_${part} ")
    string(REGEX MATCH "[0-9]+$" LibTorch_VERSION_${part} "${line}")
  endforeach()
  set(LibTorch_VERSION ${LibTorch_VERSION_MAJOR}.${LibTorch_VERSION_MINOR}.${LibTorch_VERSION_PATCH})
endif()
# The CUDA release its libraries were linked with, from the name of the runtime they ask for. Empty without CUDA.
set(LibTorch_CUDA_VERSION_MAJOR "")
if(LibTorch_c10_cuda_LIBRARY)
  file(STRINGS ${LibTorch_c10_cuda_LIBRARY} runtime REGEX "^libcudart\\.so\\.[0-9]+$" LIMIT_COUNT 1)
  string(REGEX MATCH "[0-9]+$" LibTorch_CUDA_VERSION_MAJOR "${runtime}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_INCLUDE_DIR LibTorch_c10_LIBRARY LibTorch_torch_cpu_LIBRARY
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "set LibTorch_ROOT to the folder of libtorch that holds include/ and lib/ (./dev build installs one)")

function(_libtorch_target name library)
  if(NOT TARGET LibTorch::${name})
    add_library(LibTorch::${name} SHARED IMPORTED)
    set_target_properties(LibTorch::${name} PROPERTIES
      IMPORTED_LOCATION ${library}
      INTERFACE_INCLUDE_DIRECTORIES
        "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
      INTERFACE_COMPILE_DEFINITIONS AT_PER_OPERATOR_HEADERS
      # libtorch's own libraries name CUDA libraries that a CPU build does not need to resolve.
      INTERFACE_LINK_OPTIONS -Wl,--allow-shlib-undefined)
  endif()
endfunction()
if(LibTorch_FOUND)
  _libtorch_target(c10 ${LibTorch_c10_LIBRARY})
  _libtorch_target(cpu ${LibTorch_torch_cpu_LIBRARY})
  target_link_libraries(LibTorch::cpu INTERFACE LibTorch::c10)
  if(LibTorch_torch_cuda_LIBRARY)
    _libtorch_target(c10_cuda ${LibTorch_c10_cuda_LIBRARY})
    _libtorch_target(cuda ${LibTorch_torch_cuda_LIBRARY})
    target_link_libraries(LibTorch::cuda INTERFACE LibTorch::c10_cuda LibTorch::cpu)
    # Its operators register themselves when it is loaded, and no symbol of ours asks for it: Ubuntu's linker, which keeps
    # only what is asked for, would leave a program without CUDA and without a word.
    target_link_options(LibTorch::cuda INTERFACE -Wl,--no-as-needed)
  endif()
endif()
