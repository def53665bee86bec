# SPDX-License-Identifier: Apache-2.0
# The installed library as Python loads it. Python is not needed to build or to test: where it cannot import the torch that
# the library was built with, its tests end with 77, which ctest counts as skipped. The folder of libtorch may be such a torch
# itself (the pinned wheel is), so Python looks there first.
find_program(ESPALIER_PYTHON NAMES python3 DOC "Python for the tests of the operators; one that has torch's own needs")
if(NOT ESPALIER_PYTHON OR ESPALIER_SANITIZE)
  return()
endif()
get_filename_component(site ${LibTorch_ROOT} DIRECTORY)
set(installed ${PROJECT_BINARY_DIR}/consumer/prefix/${CMAKE_INSTALL_LIBDIR}/libespalier.so)
set(ops_test ${ESPALIER_PYTHON} ${PROJECT_SOURCE_DIR}/tests/python/ops_test.py ${installed} ${LibTorch_VERSION})
add_test(NAME python.ops COMMAND ${ops_test})
add_test(NAME python.opcheck COMMAND ${ops_test} opcheck)
add_test(NAME python.example COMMAND ${ESPALIER_PYTHON} ${PROJECT_SOURCE_DIR}/tests/python/skip_without_torch.py ${LibTorch_VERSION}
  ${PROJECT_SOURCE_DIR}/examples/python/call_ops.py ${installed})
set_tests_properties(python.ops python.opcheck python.example PROPERTIES SKIP_RETURN_CODE 77 FIXTURES_REQUIRED consumer_install
  TIMEOUT 600 ENVIRONMENT "PYTHONPATH=${site};PYTHONDONTWRITEBYTECODE=1")
