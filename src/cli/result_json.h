// SPDX-License-Identifier: Apache-2.0
// A result as `generate --json` prints it.
#pragma once

#include <string>

#include "espalier/generation.h"

namespace espalier::cli {

std::string result_json(const Result& result);  // one line, without its end

}  // namespace espalier::cli
