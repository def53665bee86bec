// SPDX-License-Identifier: Apache-2.0
#include "base/json_file.h"

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <vector>

#include "base/error_text.h"
#include "base/json_fields.h"
#include "espalier/error.h"

namespace espalier {
namespace {

using nlohmann::json;

// nlohmann opens every message with "[json.exception.parse_error.101] ", which says nothing to a user.
std::string without_tag(const char* what) {
  const std::string_view message(what);
  const size_t end = message.starts_with("[json.exception.") ? message.find("] ") : std::string_view::npos;
  return std::string(end == std::string_view::npos ? message : message.substr(end + 2));
}

}  // namespace

std::string read_text_file(const std::filesystem::path& file) {
  std::error_code code;
  const auto status = std::filesystem::status(file, code);
  if (!std::filesystem::exists(status)) throw Error(file.string() + ": no such file");
  if (!std::filesystem::is_regular_file(status)) throw Error(file.string() + ": not a regular file");
  std::ifstream in(file, std::ios::binary);
  if (!in) throw Error(file.string() + ": cannot open: " + std::generic_category().message(errno));
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (in.bad()) throw Error(file.string() + ": cannot read");
  return text;
}

json parse_json(std::string_view text, const std::string& name, DuplicateKeys duplicates) {
  std::vector<std::set<std::string>> seen;  // keys of the open objects, by depth
  const auto refuse_duplicates = [&](int depth, json::parse_event_t event, json& parsed) {
    const size_t level = static_cast<size_t>(depth);
    if (event == json::parse_event_t::object_start) {
      seen.resize(level + 1);
      seen.emplace_back();
    } else if (event == json::parse_event_t::key && !seen.at(level).insert(parsed.get<std::string>()).second) {
      throw Error(text_of(name, ": key ", shown_json(parsed), " appears twice"));
    }
    return true;
  };
  try {
    if (duplicates == DuplicateKeys::kLastWins) return json::parse(text);
    return json::parse(text, refuse_duplicates);
  } catch (const json::exception& error) {
    throw Error(name + ": " + without_tag(error.what()));
  }
}

json read_json_file(const std::filesystem::path& file, DuplicateKeys duplicates) {
  return parse_json(read_text_file(file), file.string(), duplicates);
}

}  // namespace espalier
