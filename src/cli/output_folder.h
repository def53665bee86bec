// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

namespace espalier::cli {

// Throws Error when a file could not be written at `file`: better before a long run than behind it.
void check_output_folder(const std::filesystem::path& file);

}  // namespace espalier::cli
