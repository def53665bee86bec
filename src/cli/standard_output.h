// SPDX-License-Identifier: Apache-2.0
// What a command prints for its caller.
#pragma once

#include <string_view>

namespace espalier::cli {

// At once. Throws std::runtime_error when nobody takes it: a full disk, a pipe whose reader is gone.
void print(std::string_view text);

}  // namespace espalier::cli
