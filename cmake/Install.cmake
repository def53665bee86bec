# SPDX-License-Identifier: Apache-2.0
# The install tree: headers, libespalier.so, the espalier binary, the package that find_package(Espalier) reads, and the
# same for pkg-config. The libraries behind the .so (PCRE2, image formats) are its own affair; its users need libtorch
# alone, which is found again in the folder it was built with, or with ESPALIER_BUNDLE comes along (Bundle.cmake).
include(CMakePackageConfigHelpers)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/Espalier)

option(ESPALIER_BUNDLE "Install libtorch and all other libraries along" OFF)

# Besides its own folder the library looks where it was linked: libtorch's folder, which CMake leaves out by itself while it
# lies below this one (.deps), and with USE_LINK_PATH the CUDA toolkit's. The program looks for the library alone.
set_target_properties(espalier PROPERTIES INSTALL_RPATH "$ORIGIN;${LibTorch_ROOT}/lib" INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS espalier EXPORT EspalierTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
file(RELATIVE_PATH library_from_program ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
set_target_properties(espalier_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${library_from_program}")
install(TARGETS espalier_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
set(libtorch_of_users ${LibTorch_ROOT})
set(link_bundle "")
if(ESPALIER_BUNDLE)
  include(Bundle)
  set(libtorch_of_users "\${PACKAGE_PREFIX_DIR}/${bundle}")
endif()
set(left_out "")
if(NOT ESPALIER_TRAINING)
  list(APPEND left_out PATTERN training.h EXCLUDE)
endif()
if(NOT ESPALIER_EVALUATION)
  list(APPEND left_out PATTERN evaluation.h EXCLUDE)
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/espalier DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN policy_needs.md ${left_out})
# Where the binary looks for the bundled model. How it was trained stays behind, and so do costs of the machine that built it.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/models DESTINATION ${CMAKE_INSTALL_DATADIR}/espalier
        PATTERN training EXCLUDE PATTERN espalier-costs.json EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/examples DESTINATION ${CMAKE_INSTALL_DATADIR}/espalier PATTERN CMakeLists.txt EXCLUDE)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

file(RELATIVE_PATH prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(${PROJECT_SOURCE_DIR}/cmake/espalier.pc.in ${PROJECT_BINARY_DIR}/espalier.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/espalier.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/EspalierConfig.cmake.in
  ${PROJECT_BINARY_DIR}/EspalierConfig.cmake INSTALL_DESTINATION ${package_folder}
  NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/EspalierConfigVersion.cmake COMPATIBILITY SameMinorVersion)
set(package_modules ${PROJECT_SOURCE_DIR}/cmake/FindLibTorch.cmake ${PROJECT_SOURCE_DIR}/cmake/EspalierAddPolicy.cmake)
install(FILES ${PROJECT_BINARY_DIR}/EspalierConfig.cmake ${PROJECT_BINARY_DIR}/EspalierConfigVersion.cmake ${package_modules}
        DESTINATION ${package_folder})
install(EXPORT EspalierTargets NAMESPACE espalier:: DESTINATION ${package_folder})
# The build tree is a package too: `pip install ./bindings/python` takes what is built already when Espalier_DIR names it.
export(EXPORT EspalierTargets NAMESPACE espalier:: FILE ${PROJECT_BINARY_DIR}/EspalierTargets.cmake)
file(COPY ${package_modules} DESTINATION ${PROJECT_BINARY_DIR})
