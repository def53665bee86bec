// SPDX-License-Identifier: Apache-2.0
// Text with one JSON value a line.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

struct JsonLine {
  nlohmann::json value;
  std::string where;  // "FILE line N"
};

// Empty lines are passed over. Throws Error naming the line that is no JSON.
std::vector<JsonLine> json_lines(std::string_view text, const std::string& file);

}  // namespace espalier
