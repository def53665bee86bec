// SPDX-License-Identifier: Apache-2.0
#include "cli/output_folder.h"

#include <system_error>

#include "espalier/error.h"

namespace espalier::cli {

void check_output_folder(const std::filesystem::path& file) {
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  std::error_code code;
  if (!std::filesystem::is_directory(folder, code))
    throw Error(file.string() + ": cannot write: there is no folder " + folder.string());
  if (std::filesystem::is_directory(file, code)) throw Error(file.string() + ": cannot write: it is a folder");
}

}  // namespace espalier::cli
