# SPDX-License-Identifier: Apache-2.0
# `cpack` packs the install tree as .deb and .tar.gz. With ESPALIER_BUNDLE (the preset `package`, ./dev package) the same files
# run on each system whose C and C++ libraries are not older than those of this one; docs/packages.md says what is in them.
set(CPACK_GENERATOR DEB TGZ)
set(CPACK_PACKAGE_NAME espalier)
set(CPACK_PACKAGE_VENDOR "the Espalier authors")
set(CPACK_PACKAGE_CONTACT "the Espalier authors <espalier@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "LLaVA-style vision-language models with pluggable pruning of visual tokens")
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_PACKAGE_FILE_NAME espalier-${PROJECT_VERSION}-linux-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_STRIP_FILES ON)  # what is built here; libraries that come along stay as they are
set(CPACK_THREADS 0)

set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_COMPRESSION_TYPE zstd)
set(CPACK_DEBIAN_PACKAGE_SECTION libs)
execute_process(COMMAND getconf GNU_LIBC_VERSION OUTPUT_VARIABLE libc OUTPUT_STRIP_TRAILING_WHITESPACE)
string(REPLACE "glibc " "" libc "${libc}")
string(REGEX MATCH "^[0-9]+" compiler "${CMAKE_CXX_COMPILER_VERSION}")
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6 (>= ${libc}), libstdc++6 (>= ${compiler}), libgcc-s1 (>= ${compiler})")
include(CPack)
