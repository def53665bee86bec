# SPDX-License-Identifier: Apache-2.0
# Compiles every public header alone, twice included: a header that leans on what its users included first fails here.
# Those that promise to name no libtorch type are compiled without libtorch's include folder.
set(torch_free_headers act_point.h engine.h error.h espalier.h evaluation.h generation.h image.h inspect.h json.h log.h
  model_facts.h policies/table.h prompt.h scheduler.h
  session.h tokenizer.h version.h)

file(GLOB_RECURSE headers RELATIVE ${PROJECT_SOURCE_DIR}/include CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/*.h)
add_library(header_tests OBJECT)
target_link_libraries(header_tests PRIVATE LibTorch::cpu)
add_library(torch_free_header_tests OBJECT)
foreach(header ${headers})
  string(MAKE_C_IDENTIFIER ${header} unit)
  set(unit ${PROJECT_BINARY_DIR}/header_tests/${unit}.cpp)
  file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"@header@\"\n#include \"@header@\"\n" @ONLY)
  string(REPLACE "espalier/" "" name ${header})
  if(name IN_LIST torch_free_headers)
    target_sources(torch_free_header_tests PRIVATE ${unit})
  else()
    target_sources(header_tests PRIVATE ${unit})
  endif()
endforeach()
foreach(target header_tests torch_free_header_tests)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/include)
  # As a careful user would compile: an unused function or a shadowed name in a header is a warning in their build.
  target_compile_options(${target} PRIVATE -O0 -Wall -Wextra -Wshadow -Wno-unused-parameter -Werror)
endforeach()
