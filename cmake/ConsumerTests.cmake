# SPDX-License-Identifier: Apache-2.0
# Installs into a prefix of its own, then builds and runs the outside project tests/consumer against that tree alone.
# Not with sanitizers: a user's program would have to be built with them too.
if(ESPALIER_SANITIZE)
  return()
endif()
set(folder ${PROJECT_BINARY_DIR}/consumer)
set(source ${PROJECT_SOURCE_DIR}/tests/consumer)
set(model ${PROJECT_SOURCE_DIR}/tests/golden/llava15)
set(configure ${CMAKE_COMMAND} -S ${source} -G ${CMAKE_GENERATOR} -DCMAKE_PREFIX_PATH=${folder}/prefix
                                   -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
                                   -DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER})

add_test(NAME consumer.install COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${folder}/prefix)
add_test(NAME consumer.configure COMMAND ${configure} -B ${folder}/build -DCMAKE_BUILD_TYPE=Release)
add_test(NAME consumer.build COMMAND ${CMAKE_COMMAND} --build ${folder}/build)
add_test(NAME consumer.answer
  COMMAND ${folder}/build/answer ${model} ${model}/cases/images/56x56_shapes_33.png)
add_test(NAME consumer.own_policy
  COMMAND ${folder}/build/own_policy ${model} ${model}/cases/images/56x56_shapes_33.png)
set_tests_properties(consumer.install PROPERTIES FIXTURES_SETUP consumer_install)
set_tests_properties(consumer.configure PROPERTIES FIXTURES_SETUP consumer_configure FIXTURES_REQUIRED consumer_install)
set_tests_properties(consumer.build PROPERTIES FIXTURES_SETUP consumer_build FIXTURES_REQUIRED consumer_configure)
set_tests_properties(consumer.answer consumer.own_policy PROPERTIES FIXTURES_REQUIRED consumer_build)
if(TARGET espalier_cli)
  # With the bundled model, which it has to find in the install tree.
  add_test(NAME consumer.program
    COMMAND ${folder}/prefix/${CMAKE_INSTALL_BINDIR}/espalier generate --prompt Hello --max-new-tokens 2 --json)
  set_tests_properties(consumer.program PROPERTIES FIXTURES_REQUIRED consumer_install
    PASS_REGULAR_EXPRESSION "\"token_ids\"")
endif()

# A libtorch that is gone, and one of another minor version: refused while configuring, in words.
set(other ${folder}/other_libtorch)
file(WRITE ${other}/include/ATen/core/Tensor.h "")
file(WRITE ${other}/include/torch/headeronly/version.h
  "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 3\n#define TORCH_VERSION_PATCH 1\n")
file(WRITE ${other}/lib/libc10.so "")
file(WRITE ${other}/lib/libtorch_cpu.so "")
add_test(NAME consumer.missing_libtorch COMMAND ${configure} -B ${folder}/missing -DLibTorch_ROOT=${folder}/nowhere)
add_test(NAME consumer.other_libtorch COMMAND ${configure} -B ${folder}/other -DLibTorch_ROOT=${other})
set_tests_properties(consumer.missing_libtorch PROPERTIES FIXTURES_REQUIRED consumer_install
  PASS_REGULAR_EXPRESSION "built with libtorch ${LibTorch_VERSION} in.*no[ \n]+libtorch in")
set_tests_properties(consumer.other_libtorch PROPERTIES FIXTURES_REQUIRED consumer_install
  PASS_REGULAR_EXPRESSION "built with libtorch ${LibTorch_VERSION}.*is[ \n]+libtorch 2.3.1")
