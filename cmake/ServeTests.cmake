# SPDX-License-Identifier: Apache-2.0
# The server as clients of other languages and a proxy meet it, and the arithmetic of the program that puts load on it. Each ends with 77,
# which ctest counts as skipped, where what it needs is not there: the Python package openai, nginx.
if(NOT ESPALIER_PYTHON OR ESPALIER_SANITIZE)
  return()
endif()
set(serve_tests ${PROJECT_SOURCE_DIR}/tests/serve)
add_test(NAME serve.openai COMMAND ${ESPALIER_PYTHON} ${serve_tests}/openai_client.py $<TARGET_FILE:espalier_cli>
  ${PROJECT_SOURCE_DIR}/models/demo ${PROJECT_SOURCE_DIR}/examples/demo/shape/0.png)
add_test(NAME serve.replicas COMMAND ${ESPALIER_PYTHON} ${serve_tests}/replicas.py $<TARGET_FILE:espalier_cli>)
add_test(NAME serve.load COMMAND ${ESPALIER_PYTHON} ${serve_tests}/load_test.py)
set_tests_properties(serve.openai serve.replicas serve.load PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600
  ENVIRONMENT "PYTHONDONTWRITEBYTECODE=1")
