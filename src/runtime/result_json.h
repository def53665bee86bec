// SPDX-License-Identifier: Apache-2.0
// A result and its statistics as `generate --json` prints them.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "espalier/generation.h"

namespace espalier {

nlohmann::ordered_json to_json(const Stats& stats);
nlohmann::ordered_json to_json(const Result& result);

// One line. A stop string of the caller's may have cut a character of the text in two; what is left of it is replaced.
std::string to_line(const nlohmann::ordered_json& json);

}  // namespace espalier
