// SPDX-License-Identifier: Apache-2.0
#include "serve/json_object.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "serve/api_error.h"

namespace espalier::serve {

using Json = nlohmann::json;

Json parse_body(const std::string& body) {
  constexpr int kDeepest = 16;
  constexpr int kMostValues = 100'000;
  int values = 0;
  const auto watch = [&](int depth, Json::parse_event_t event, Json&) {
    if (event == Json::parse_event_t::key) return true;
    if (depth > kDeepest) throw ApiError(400, "invalid_json", "the body's JSON is nested too deep");
    if (++values > kMostValues) throw ApiError(400, "invalid_json", "the body's JSON has too many values");
    return true;
  };
  try {
    Json json = Json::parse(body, watch);
    if (!json.is_object()) throw ApiError(400, "invalid_json", "the body must be a JSON object, got " + shown(json));
    return json;
  } catch (const Json::exception& error) {
    std::string text = error.what();
    text = text.substr(text.find("] ") == std::string::npos ? 0 : text.find("] ") + 2);
    throw ApiError(400, "invalid_json", "the body is not JSON: " + text.substr(0, 200));
  }
}

std::string shown(const Json& value) {
  constexpr size_t kMost = 60;
  if (value.is_string() && value.get_ref<const std::string&>().size() > kMost) return "a string";
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 8) return "a list of " + std::to_string(value.size());
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > kMost ? std::string("a ") + value.type_name() : text;
}

JsonObject::JsonObject(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is_object())
    throw ApiError(400, "invalid_type", path_ + ": expected an object, got " + shown(object), path_);
}

std::string JsonObject::path_of(std::string_view key) const {
  return (path_.empty() ? "" : path_ + ".") + std::string(key);
}

void JsonObject::refuse(std::string_view key, const std::string& expected) const {
  const auto found = object_.find(key);
  const std::string path = path_of(key);
  throw ApiError(400, "invalid_value",
                 path + ": expected " + expected + ", got " + (found == object_.end() ? "nothing" : shown(*found)),
                 path);
}

const Json* JsonObject::find(std::string_view key) {
  known_.emplace(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const Json& JsonObject::at(std::string_view key, std::string_view expected) {
  const Json* value = find(key);
  if (!value) throw ApiError(400, "missing_field", path_of(key) + ": expected " + std::string(expected), path_of(key));
  return *value;
}

std::optional<bool> JsonObject::boolean(std::string_view key) {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) refuse(key, "true or false");
  return value->get<bool>();
}

std::optional<int64_t> JsonObject::integer(std::string_view key, int64_t low, int64_t high) {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  const bool is_small = value->is_number_integer() &&
                        !(value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  if (!is_small || value->get<int64_t>() < low || value->get<int64_t>() > high)
    refuse(key, "a whole number from " + std::to_string(low) + " up to " + std::to_string(high));
  return value->get<int64_t>();
}

std::optional<double> JsonObject::number(std::string_view key, double low, double high) {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high)) {
    std::ostringstream expected;
    expected << "a number from " << low << " up to " << high;
    refuse(key, expected.str());
  }
  return value->get<double>();
}

std::optional<std::string> JsonObject::string(std::string_view key) {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_string()) refuse(key, "a string");
  return value->get<std::string>();
}

std::string JsonObject::string_at(std::string_view key) {
  at(key, "a string");
  return *string(key);
}

void JsonObject::refuse_unknown() const {
  for (const auto& [key, value] : object_.items())
    if (!known_.contains(key))
      throw ApiError(400, "unknown_field", path_of(key).substr(0, 200) + ": there is no such field",
                     path_of(key).substr(0, 200));
}

}  // namespace espalier::serve
