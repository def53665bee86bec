// SPDX-License-Identifier: Apache-2.0
// Text and JSON files of a checkpoint, read so that every complaint is an Error that names file and place. What stands
// in an object: json_fields.h. Callers that look into the JSON include <nlohmann/json.hpp> in their .cpp; this header
// does not.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace espalier {

std::string read_text_file(const std::filesystem::path& file);

enum class DuplicateKeys { kLastWins, kRefuse };

// `name` (a file) opens the message of every Error, followed by line and column.
nlohmann::json parse_json(std::string_view text, const std::string& name,
                          DuplicateKeys duplicates = DuplicateKeys::kLastWins);
nlohmann::json read_json_file(const std::filesystem::path& file, DuplicateKeys duplicates = DuplicateKeys::kLastWins);

}  // namespace espalier
