// SPDX-License-Identifier: Apache-2.0
// What JSON outputs have in common (docs/formats.md): how they begin, a result, its statistics.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "espalier/engine.h"
#include "espalier/generation.h"

namespace espalier {

// How every JSON output begins: "schema", "espalier" (the version that wrote it) and "date" (UTC, ISO 8601). Of a run
// also "model" (the name of its folder), "dtype" and "device".
nlohmann::ordered_json json_head();
nlohmann::ordered_json json_head(const Engine& engine);

nlohmann::ordered_json to_json(const Stats& stats);
nlohmann::ordered_json to_json(const Result& result);

// One line. A stop string of the caller's may have cut a character of the text in two; what is left of it is replaced.
std::string to_line(const nlohmann::ordered_json& json);

}  // namespace espalier
