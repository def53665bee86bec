// SPDX-License-Identifier: Apache-2.0
#include "base/json_lines.h"

#include <algorithm>

#include "base/json_file.h"

namespace espalier {

std::vector<JsonLine> json_lines(std::string_view text, const std::string& file) {
  std::vector<JsonLine> lines;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    const std::string where = file + " line " + std::to_string(++number);
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) lines.push_back({parse_json(line, where), where});
    begin = end + 1;
  }
  return lines;
}

}  // namespace espalier
