// SPDX-License-Identifier: Apache-2.0
// Where the models that come with Espalier lie, seen from the running executable.
#pragma once

#include <filesystem>
#include <string_view>

namespace espalier::cli {

// share/espalier/models/NAME of an install, or models/NAME of the source tree that holds build/PRESET/bin. Throws Error
// when neither is there.
std::filesystem::path bundled_model(std::string_view name = "demo");

}  // namespace espalier::cli
