# SPDX-License-Identifier: Apache-2.0
# ESPALIER_BUNDLE: the install tree also holds, in lib/espalier, what a bare system lacks: lib/ with libtorch and all other
# libraries but those of the C and C++ compilers, include/ with libtorch's headers. It is a folder as LibTorch_ROOT names one,
# so programs and policies are built against it as against any other libtorch.
set(bundle ${CMAKE_INSTALL_LIBDIR}/espalier)

# RPATH and not RUNPATH: it must also hold for what these libraries load in turn, which say nothing themselves.
target_link_options(espalier PRIVATE LINKER:--disable-new-dtags)
target_link_options(espalier_cli PRIVATE LINKER:--disable-new-dtags)
set_target_properties(espalier PROPERTIES INSTALL_RPATH "$ORIGIN/espalier/lib" INSTALL_RPATH_USE_LINK_PATH OFF)
set_target_properties(espalier_cli PROPERTIES
  INSTALL_RPATH "$ORIGIN/${library_from_program}/espalier/lib;$ORIGIN/${library_from_program}")

# A linker follows RPATHs one library deep, and spdlog's own libfmt is two away.
set(link_bundle " -Wl,-rpath-link,\${libdir}/espalier/lib")

install(DIRECTORY ${LibTorch_ROOT}/include DESTINATION ${bundle})
install(CODE "
set(library \"$<TARGET_FILE:espalier>\")
set(program \"$<TARGET_FILE:espalier_cli>\")
set(architecture \"${CMAKE_LIBRARY_ARCHITECTURE}\")
set(bundle \"\${CMAKE_INSTALL_PREFIX}/${bundle}\")
set(licences \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DOCDIR}/libraries\")")
install(SCRIPT ${CMAKE_CURRENT_LIST_DIR}/install_libraries.cmake)
