// SPDX-License-Identifier: Apache-2.0
// printf into a string, for the rows of tables.
#pragma once

#include <string>

namespace espalier::cli {

// At most 511 bytes; what is longer is cut.
__attribute__((format(printf, 1, 2))) std::string formatted(const char* format, ...);

}  // namespace espalier::cli
