// SPDX-License-Identifier: Apache-2.0
#include "cli/standard_output.h"

#include <cstdio>
#include <stdexcept>

namespace espalier::cli {

void print(std::string_view text) {
  const bool is_written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!is_written) throw std::runtime_error("cannot write to standard output");
}

}  // namespace espalier::cli
