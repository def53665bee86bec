# SPDX-License-Identifier: Apache-2.0
# The site of docs/, built without a warning. Ends with 77, which ctest counts as skipped, without Doxygen.
add_test(NAME docs.site COMMAND ${PROJECT_SOURCE_DIR}/tests/docs/site.sh ${PROJECT_BINARY_DIR}/docs_site)
set_tests_properties(docs.site PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600)

# What the pages show: commands, programs and files, block by block. Not with sanitizers: a page's own program would have to be built
# with them too. A program that is not there (curl) makes its page count as skipped, when nothing else of it fails.
if(NOT ESPALIER_PYTHON OR ESPALIER_SANITIZE)
  return()
endif()
file(GLOB pages CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/docs/*.md)
set(compiler ${CMAKE_CXX_COMPILER_LAUNCHER} ${CMAKE_CXX_COMPILER} -DAT_PER_OPERATOR_HEADERS)
list(JOIN compiler " " compiler)
set(page_include "")
get_target_property(page_folders LibTorch::cpu INTERFACE_INCLUDE_DIRECTORIES)
foreach(folder ${page_folders})
  list(APPEND page_include --include ${folder})
endforeach()
add_test(NAME docs.blocks_test COMMAND ${PROJECT_SOURCE_DIR}/tests/docs/blocks_test.sh ${ESPALIER_PYTHON})
set_tests_properties(docs.blocks_test PROPERTIES ENVIRONMENT "CXX=${CMAKE_CXX_COMPILER}")
foreach(page ${pages})
  get_filename_component(name ${page} NAME_WE)
  add_test(NAME docs.${name} COMMAND ${ESPALIER_PYTHON} ${PROJECT_SOURCE_DIR}/tests/docs/blocks.py ${page}
    ${PROJECT_BINARY_DIR}/docs_blocks/${name} --build ${PROJECT_BINARY_DIR} --cxx ${compiler} ${page_include})
  set_tests_properties(docs.${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600 ENVIRONMENT "PYTHONDONTWRITEBYTECODE=1")
  # Python's blocks want the package, where it is built; else they are only parsed.
  file(STRINGS ${page} python REGEX "^```python")
  if(python)
    set_tests_properties(docs.${name} PROPERTIES FIXTURES_REQUIRED python_package
      ENVIRONMENT "PYTHONPATH=${PROJECT_BINARY_DIR}/python/site:${site};PYTHONDONTWRITEBYTECODE=1")
  endif()
  file(STRINGS ${page} installs REGEX "^cmake --install")
  if(installs)
    set_tests_properties(docs.${name} PROPERTIES RESOURCE_LOCK install)  # the build folder has one manifest
  endif()
endforeach()
