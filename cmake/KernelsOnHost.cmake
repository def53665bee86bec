# SPDX-License-Identifier: Apache-2.0
# The kernels' tests once more, with every CUDA kernel and the code around it run by the processor, a thread at a time, in
# place of the CPU's own (tests/kernels_on_host): what they compute is tested on machines without a GPU. Needs the headers
# of the CUDA toolkit. Not with sanitizers: they do not follow a program from one stack to another.
if(NOT ESPALIER_HAS_CUDA OR ESPALIER_SANITIZE)
  return()
endif()
set(folder ${PROJECT_SOURCE_DIR}/tests/kernels_on_host)
file(GLOB_RECURSE device_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*_cuda.cu ${PROJECT_SOURCE_DIR}/kernels/*_cuda.cpp)
list(FILTER device_sources EXCLUDE REGEX device_graph)
set(on_host "")
foreach(source ${device_sources})
  get_filename_component(name ${source} NAME)
  set(unit ${PROJECT_BINARY_DIR}/kernels_on_host/${name}.cpp)
  add_custom_command(OUTPUT ${unit} DEPENDS ${source} ${folder}/rewrite.sed
    COMMAND sed -zE -f ${folder}/rewrite.sed ${source} > ${unit} VERBATIM)
  if(name MATCHES "\\.cu$")
    set_source_files_properties(${unit} PROPERTIES COMPILE_OPTIONS
      "-include;${folder}/host_device.h;-Wno-unknown-pragmas;-Wno-sign-compare")
  endif()
  list(APPEND on_host ${unit})
endforeach()
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/kernels_on_host)

# Registered behind the CPU's ops, which they replace: objects are initialised in the order in which they are linked.
set(objects $<TARGET_OBJECTS:espalier_kernels>)
add_executable(kernels_on_host_tests $<TARGET_OBJECTS:kernels_tests>
  "$<FILTER:${objects},EXCLUDE,_cuda.c(u|pp)>" "$<FILTER:${objects},INCLUDE,device_graph_cuda.cpp>"
  ${on_host} ${folder}/host_device.cpp)
target_include_directories(kernels_on_host_tests BEFORE PRIVATE ${folder})
target_include_directories(kernels_on_host_tests PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
target_compile_definitions(kernels_on_host_tests PRIVATE ESPALIER_HAS_CUDA)
target_link_libraries(kernels_on_host_tests PRIVATE espalier_flags test_support GTest::gtest_main LibTorch::cuda CUDA::cudart
  OpenMP::OpenMP_CXX)

# The cases of the CPU, which these ops now serve. Left out: what only the CPU's ops promise (the values of lengths checked,
# rows of a product independent of each other), the selections' 16-bit features, which are widened before any kernel sees
# them, and a few cases that take the host longest and show it nothing new.
set(left_out *RejectsWhatDoesNotFit* *RowsAreIndependent* *ManyRowsMatchCosineScore* *EachCpuPathMatchesTheFormula*
  *FacilityLocationTest*BFloat16 *FacilityLocationTest*Half *MaxMinTest*BFloat16 *MaxMinTest*Half *GreedyDppTest*BFloat16
  *GreedyDppTest*Half *MaxMinTest.ManyBlocksAndNaN* *FacilityLocationTest.ManyRowsAndNaN*)
list(JOIN left_out ":" left_out)
espalier_shards(kernels_on_host "--gtest_filter=*/cpu_*:-${left_out}")
