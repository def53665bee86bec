# SPDX-License-Identifier: Apache-2.0
# Run while installing: copies the libraries that `library` and `program` (of the build folder) load, and those that these
# load, to ${bundle}/lib, and what their owners want said to ${licences}. Those of the compilers are left to the system, and
# so is the C library, which must fit its loader.
file(GET_RUNTIME_DEPENDENCIES LIBRARIES ${library} EXECUTABLES ${program}
  RESOLVED_DEPENDENCIES_VAR found UNRESOLVED_DEPENDENCIES_VAR missing
  PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|util|pthread|stdc\\+\\+|gcc_s)\\.so" "^libespalier\\.so")
if(missing)
  message(FATAL_ERROR "libraries to install along: not found: ${missing}")
endif()
foreach(file ${found})
  file(INSTALL ${file} DESTINATION ${bundle}/lib FOLLOW_SYMLINK_CHAIN)

  # A wheel lists its files beside its licence; a system's package has a file named copyright.
  file(REAL_PATH ${file} real)
  set(texts "")
  string(REGEX MATCH "^(.*)/(torch|nvidia)/" in_wheels ${real})
  if(in_wheels)
    file(RELATIVE_PATH listed ${CMAKE_MATCH_1} ${real})
    file(GLOB records ${CMAKE_MATCH_1}/*.dist-info/RECORD)
    foreach(record ${records})
      file(STRINGS ${record} line REGEX "^${listed},")
      if(line)
        get_filename_component(folder ${record} DIRECTORY)
        get_filename_component(owner ${folder} NAME_WLE)
        file(GLOB texts ${folder}/licenses/*)
      endif()
    endforeach()
  else()
    get_filename_component(name ${real} NAME)
    execute_process(COMMAND dpkg-query --search */${architecture}/${name} OUTPUT_VARIABLE owner ERROR_QUIET)
    string(REGEX REPLACE ":.*" "" owner "${owner}")
    file(GLOB texts /usr/share/doc/${owner}/copyright)
  endif()
  if(texts)
    file(INSTALL ${texts} DESTINATION ${licences}/${owner})
  else()
    message(WARNING "${file}: no licence was found to install along")
  endif()
endforeach()
