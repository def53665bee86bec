// SPDX-License-Identifier: Apache-2.0
#include "cli/bundled_model.h"

#include <system_error>

#include "espalier/error.h"

namespace espalier::cli {

std::filesystem::path bundled_model(std::string_view name) {
  std::error_code code;
  const std::filesystem::path bin = std::filesystem::read_symlink("/proc/self/exe", code).parent_path();
  for (const char* place : {"../share/espalier/models", "../../../models"}) {
    std::filesystem::path folder = (bin / place / name).lexically_normal();
    if (std::filesystem::exists(folder / "config.json", code)) return folder;
  }
  throw Error("--model DIR is needed: no bundled model lies beside " + bin.string());
}

}  // namespace espalier::cli
