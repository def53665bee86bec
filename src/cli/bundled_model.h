// SPDX-License-Identifier: Apache-2.0
// Where the model that comes with Espalier lies, seen from the running executable.
#pragma once

#include <filesystem>

namespace espalier::cli {

// share/espalier/models/demo of an install, or models/demo of the source tree that holds build/PRESET/bin. Throws Error
// when neither is there.
std::filesystem::path bundled_model();

}  // namespace espalier::cli
