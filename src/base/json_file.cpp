// SPDX-License-Identifier: Apache-2.0
#include "base/json_file.h"

#include <cerrno>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

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

// What stands in a message for a value of the wrong kind: its text, cut to a length fit for one line.
std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = std::string(value.type_name()) + " of " + std::to_string(text.size()) + " bytes";
  return text;
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
      throw Error(name + ": key " + shown(parsed) + " appears twice");
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

JsonFields::JsonFields(const json& object, const std::string& name, std::string prefix)
    : object_(object), name_(name), prefix_(std::move(prefix)) {
  if (object.is_object()) return;
  const std::string where = prefix_.empty() ? "" : " field \"" + prefix_.substr(0, prefix_.size() - 1) + "\":";
  throw Error(name + ":" + where + " expected an object, got " + shown(object));
}

const json* JsonFields::find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void JsonFields::fail(const char* key, const std::string& expected) const {
  const auto it = object_.find(key);
  const std::string came = it == object_.end() ? "nothing" : shown(*it);
  throw Error(name_ + ": field \"" + prefix_ + key + "\": expected " + expected + ", got " + came);
}

std::optional<bool> JsonFields::boolean(const char* key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) fail(key, "true or false");
  return value->get<bool>();
}

std::optional<int64_t> JsonFields::integer(const char* key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  const bool fits = !value->is_number_unsigned() ||
                    value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value->is_number_integer() || !fits) fail(key, "an integer");
  return value->get<int64_t>();
}

std::optional<double> JsonFields::number(const char* key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->get<double>())) fail(key, "a number");
  return value->get<double>();
}

std::optional<std::string> JsonFields::string(const char* key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_string()) fail(key, "a string");
  return value->get<std::string>();
}

std::optional<std::vector<double>> JsonFields::numbers(const char* key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_array()) fail(key, "a list of numbers");
  std::vector<double> out;
  for (const json& item : *value) {
    if (!item.is_number()) fail(key, "a list of numbers");
    out.push_back(item.get<double>());
  }
  return out;
}

}  // namespace espalier
