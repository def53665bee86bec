// SPDX-License-Identifier: Apache-2.0
// Text and JSON files, read so that every complaint is an Error that names file and place. All JSON that others wrote
// comes through here. What stands in an object: json_fields.h. Callers that look into the JSON include
// <nlohmann/json.hpp> in their .cpp; this header does not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/limits.h"

namespace espalier {

// Whether something is there, were it only a broken link: what is there and cannot be read is an error of the reading.
bool is_there(const std::filesystem::path& file);
bool is_folder(const std::filesystem::path& file);

// The whole of a regular file, which may have up to `most` bytes.
std::string read_text_file(const std::filesystem::path& file, int64_t most = limits::kTextFileBytes);

// `name` (a file) opens the message of every Error, followed by line and column. A key that an object has twice is an
// Error too: readers do not agree on which of the two counts.
nlohmann::json parse_json(std::string_view text, const std::string& name);
nlohmann::json read_json_file(const std::filesystem::path& file, int64_t most = limits::kTextFileBytes);

}  // namespace espalier
