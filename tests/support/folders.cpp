// SPDX-License-Identifier: Apache-2.0
#include "tests/support/folders.h"

namespace espalier::test {

std::filesystem::path golden_folder() {
  return source_folder() / "tests" / "golden";
}

std::filesystem::path source_folder() {
  return ESPALIER_SOURCE_DIR;
}

std::filesystem::path espalier_binary() {
  return ESPALIER_BINARY;
}

}  // namespace espalier::test
