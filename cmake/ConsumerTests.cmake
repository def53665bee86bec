# SPDX-License-Identifier: Apache-2.0
# Installs into a prefix of its own, then builds and runs the outside project tests/consumer against that tree alone.
# Not with sanitizers: a user's program would have to be built with them too.
if(ESPALIER_SANITIZE)
  return()
endif()
set(folder ${PROJECT_BINARY_DIR}/consumer)
set(source ${PROJECT_SOURCE_DIR}/tests/consumer)
set(model ${PROJECT_SOURCE_DIR}/tests/golden/llava15)
string(REPLACE ";" "\\;" launcher "${CMAKE_CXX_COMPILER_LAUNCHER}")  # one argument, however many words it has
set(version ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
set(configure ${CMAKE_COMMAND} -S ${source} -G ${CMAKE_GENERATOR} -DCMAKE_PREFIX_PATH=${folder}/prefix -DESPALIER_VERSION=${version}
                                   -DESPALIER_EXAMPLES=${PROJECT_SOURCE_DIR}/examples
                                   -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
                                   "-DCMAKE_CXX_COMPILER_LAUNCHER=${launcher}")

add_test(NAME consumer.install COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${folder}/prefix)
add_test(NAME consumer.configure COMMAND ${configure} -B ${folder}/build -DCMAKE_BUILD_TYPE=Release)
add_test(NAME consumer.build COMMAND ${CMAKE_COMMAND} --build ${folder}/build)
add_test(NAME consumer.answer
  COMMAND ${folder}/build/answer ${model} ${model}/cases/images/56x56_shapes_33.png)
add_test(NAME consumer.own_policy
  COMMAND ${folder}/build/own_policy ${model} ${model}/cases/images/56x56_shapes_33.png)
set_tests_properties(consumer.install PROPERTIES FIXTURES_SETUP consumer_install RESOURCE_LOCK install)
set_tests_properties(consumer.configure PROPERTIES FIXTURES_SETUP consumer_configure FIXTURES_REQUIRED consumer_install)
set_tests_properties(consumer.build PROPERTIES FIXTURES_SETUP consumer_build FIXTURES_REQUIRED consumer_configure)
foreach(example generate keep_norms merge_pairs)
  add_test(NAME consumer.${example}
    COMMAND ${folder}/build/${example} ${model} ${model}/cases/images/56x56_shapes_33.png "What is it?")
endforeach()
# The same from C: a project in C alone, and pkg-config.
add_test(NAME consumer.c_configure COMMAND ${CMAKE_COMMAND} -S ${source}/c -B ${folder}/c -G ${CMAKE_GENERATOR}
  -DCMAKE_PREFIX_PATH=${folder}/prefix -DESPALIER_VERSION=${version} -DESPALIER_EXAMPLES=${folder}/prefix/${CMAKE_INSTALL_DATADIR}/espalier/examples
  -DCMAKE_C_COMPILER=${CMAKE_C_COMPILER})
add_test(NAME consumer.c_build COMMAND ${CMAKE_COMMAND} --build ${folder}/c)
set_tests_properties(consumer.c_configure PROPERTIES FIXTURES_SETUP consumer_c_configure FIXTURES_REQUIRED consumer_install)
set_tests_properties(consumer.c_build PROPERTIES FIXTURES_SETUP consumer_c_build FIXTURES_REQUIRED consumer_c_configure)
foreach(example generate chat two_tickets samples)
  add_test(NAME consumer.c_${example}
    COMMAND ${folder}/c/${example} ${model} ${model}/cases/images/56x56_shapes_33.png "What is it?")
  set_tests_properties(consumer.c_${example} PROPERTIES FIXTURES_REQUIRED consumer_c_build)
endforeach()
add_test(NAME consumer.pkg_config COMMAND ${source}/pkg_config.sh ${folder}/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig
  ${PROJECT_SOURCE_DIR}/examples ${folder}/pkg_config ${model} ${model}/cases/images/56x56_shapes_33.png)
set_tests_properties(consumer.pkg_config PROPERTIES FIXTURES_REQUIRED consumer_install
  PASS_REGULAR_EXPRESSION "8 image tokens reached.*8 of 16 image tokens reached")
add_test(NAME consumer.conformance COMMAND ${folder}/build/keep_centre_test --gtest_brief=1)
add_test(NAME consumer.own_conformance COMMAND ${folder}/build/own_policy_test --gtest_brief=1)
set_tests_properties(consumer.answer consumer.own_policy consumer.generate consumer.keep_norms consumer.merge_pairs
  consumer.conformance consumer.own_conformance PROPERTIES FIXTURES_REQUIRED consumer_build)
if(TARGET espalier_cli)
  # With the bundled model, which it has to find in the install tree.
  add_test(NAME consumer.program
    COMMAND ${folder}/prefix/${CMAKE_INSTALL_BINDIR}/espalier generate --prompt Hello --max-new-tokens 2 --json)
  set_tests_properties(consumer.program PROPERTIES FIXTURES_REQUIRED consumer_install
    PASS_REGULAR_EXPRESSION "\"token_ids\"")
  # A policy loaded by path, and one that is refused.
  set(ask ${folder}/prefix/${CMAKE_INSTALL_BINDIR}/espalier generate --model ${model} --max-new-tokens 2 --prompt Hello
          --image ${model}/cases/images/56x56_shapes_33.png --json)
  add_test(NAME consumer.plugin COMMAND ${ask}
    --policy-plugin ${folder}/build/keep_centre_policy.so --policy keep_centre:share=0.5)
  add_test(NAME consumer.outdated_plugin COMMAND ${ask}
    --policy-plugin ${folder}/build/outdated_policy.so --policy outdated)
  set_tests_properties(consumer.plugin consumer.outdated_plugin PROPERTIES FIXTURES_REQUIRED consumer_build)
  set_tests_properties(consumer.plugin PROPERTIES PASS_REGULAR_EXPRESSION "projector_output")
  set_tests_properties(consumer.outdated_plugin PROPERTIES
    PASS_REGULAR_EXPRESSION "built for policy interface 1, libtorch ${LibTorch_VERSION}, this is policy interface 4, libtorch ${LibTorch_VERSION}")
endif()

# The build tree is a package too.
add_test(NAME consumer.build_tree COMMAND ${configure} -B ${folder}/of_build_tree -DEspalier_DIR=${PROJECT_BINARY_DIR})

# An earlier version that is asked for, a libtorch that is gone, and one of another minor version: refused while configuring, in words.
set(other ${folder}/other_libtorch)
file(WRITE ${other}/include/ATen/core/Tensor.h "")
file(WRITE ${other}/include/torch/headeronly/version.h
  "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 3\n#define TORCH_VERSION_PATCH 1\n")
file(WRITE ${other}/lib/libc10.so "")
file(WRITE ${other}/lib/libtorch_cpu.so "")
add_test(NAME consumer.other_version COMMAND ${configure} -B ${folder}/earlier -DESPALIER_VERSION=0.1)
add_test(NAME consumer.missing_libtorch COMMAND ${configure} -B ${folder}/missing -DLibTorch_ROOT=${folder}/nowhere)
add_test(NAME consumer.other_libtorch COMMAND ${configure} -B ${folder}/other -DLibTorch_ROOT=${other})
set_tests_properties(consumer.other_version PROPERTIES FIXTURES_REQUIRED consumer_install
  PASS_REGULAR_EXPRESSION "compatible with requested version \"0.1\".*version: ${PROJECT_VERSION}")
set_tests_properties(consumer.missing_libtorch PROPERTIES FIXTURES_REQUIRED consumer_install
  PASS_REGULAR_EXPRESSION "built with libtorch ${LibTorch_VERSION} in.*no[ \n]+libtorch in")
set_tests_properties(consumer.other_libtorch PROPERTIES FIXTURES_REQUIRED consumer_install
  PASS_REGULAR_EXPRESSION "built with libtorch ${LibTorch_VERSION}.*is[ \n]+libtorch 2.3.1")
