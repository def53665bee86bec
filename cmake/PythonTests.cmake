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

# The package, built against the install tree as a user's would be, and its tests.
set(package_build ${PROJECT_BINARY_DIR}/python)
set(package_site ${package_build}/site)
add_test(NAME python.package.build COMMAND ${ESPALIER_PYTHON} ${PROJECT_SOURCE_DIR}/tests/python/build_package.py ${LibTorch_VERSION}
  ${PROJECT_BINARY_DIR}/consumer/prefix/${CMAKE_INSTALL_LIBDIR}/cmake/Espalier ${PROJECT_SOURCE_DIR}/bindings/python ${package_build}
  ${package_site})
set_tests_properties(python.package.build PROPERTIES FIXTURES_REQUIRED consumer_install FIXTURES_SETUP python_package TIMEOUT 1800)
set(package_tests generate policies scheduler tools ends texts)
foreach(part ${package_tests})
  add_test(NAME python.package.${part} COMMAND ${ESPALIER_PYTHON} ${PROJECT_SOURCE_DIR}/tests/python/run_package_tests.py ${LibTorch_VERSION}
    ${package_site} test_${part}.py -q --program $<TARGET_FILE:espalier_cli>)
  set_tests_properties(python.package.${part} PROPERTIES FIXTURES_REQUIRED python_package TIMEOUT 1200)
endforeach()
# A Python whose torch is another, and one without: refused before anything is compiled.
add_test(NAME python.package.other_torch COMMAND ${ESPALIER_PYTHON} ${PROJECT_SOURCE_DIR}/tests/python/refused_torch.py
  ${PROJECT_SOURCE_DIR}/bindings/python ${package_build}/refused)
list(TRANSFORM package_tests PREPEND python.package.)
set_tests_properties(python.package.build ${package_tests} PROPERTIES SKIP_RETURN_CODE 77
  ENVIRONMENT "PYTHONPATH=${site};PYTHONDONTWRITEBYTECODE=1")
