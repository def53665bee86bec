# SPDX-License-Identifier: Apache-2.0
# The install tree: headers, libespalier.so, the espalier binary and the package that find_package(Espalier) reads.
# The libraries behind the .so (JSON, PCRE2, image formats) are its own affair; its users need libtorch alone, which is
# found again in the folder it was built with.
include(CMakePackageConfigHelpers)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/Espalier)

# Besides its own folder each binary looks where it was linked: libtorch's folder, which CMake leaves out by itself while it
# lies below this one (.deps), and with USE_LINK_PATH the CUDA toolkit's.
set_target_properties(espalier PROPERTIES INSTALL_RPATH "$ORIGIN;${LibTorch_ROOT}/lib" INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS espalier EXPORT EspalierTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET espalier_cli)
  file(RELATIVE_PATH library_from_program ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
  set_target_properties(espalier_cli PROPERTIES
    INSTALL_RPATH "$ORIGIN/${library_from_program};${LibTorch_ROOT}/lib" INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS espalier_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
set(left_out "")
if(NOT ESPALIER_TRAINING)
  list(APPEND left_out PATTERN training.h EXCLUDE)
endif()
if(NOT ESPALIER_EVALUATION)
  list(APPEND left_out PATTERN evaluation.h EXCLUDE)
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/espalier DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" ${left_out})
# Where the binary looks for the bundled model.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/models DESTINATION ${CMAKE_INSTALL_DATADIR}/espalier)

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/EspalierConfig.cmake.in
  ${PROJECT_BINARY_DIR}/EspalierConfig.cmake INSTALL_DESTINATION ${package_folder}
  NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/EspalierConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/EspalierConfig.cmake ${PROJECT_BINARY_DIR}/EspalierConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindLibTorch.cmake
        DESTINATION ${package_folder})
install(EXPORT EspalierTargets NAMESPACE espalier:: DESTINATION ${package_folder})
# The build tree is a package too: `pip install ./bindings/python` takes what is built already when Espalier_DIR names it.
export(EXPORT EspalierTargets NAMESPACE espalier:: FILE ${PROJECT_BINARY_DIR}/EspalierTargets.cmake)
file(COPY ${PROJECT_SOURCE_DIR}/cmake/FindLibTorch.cmake DESTINATION ${PROJECT_BINARY_DIR})
