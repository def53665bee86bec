// SPDX-License-Identifier: Apache-2.0
// Where the tests find what they read. The paths are known to folders.cpp alone, so that every other unit compiles to
// the same bytes in another copy of the sources, and ccache finds it.
#pragma once

#include <filesystem>

namespace espalier::test {

std::filesystem::path golden_folder();    // tests/golden
std::filesystem::path source_folder();    // the top of the sources
std::filesystem::path espalier_binary();  // the built command line

}  // namespace espalier::test
