// SPDX-License-Identifier: Apache-2.0
#include "base/json_fields.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error_text.h"
#include "espalier/error.h"

namespace espalier {
namespace {

using nlohmann::json;

bool is_integer(const json& value, int64_t low, int64_t high) {
  if (!value.is_number_integer()) return false;
  const bool fits = !value.is_number_unsigned() ||
                    value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  return fits && value.get<int64_t>() >= low && value.get<int64_t>() <= high;
}

bool is_number(const json& value) {
  return value.is_number() && std::isfinite(value.get<double>());
}

// "an integer from 1 to 4", "integers from 1": how a range is asked for.
std::string in_range(std::string_view what, int64_t low, int64_t high) {
  std::string text(what);
  if (low > JsonFields::kLeast) text += text_of(" from ", low);
  if (high < JsonFields::kMost) text += text_of(" to ", high);
  return text;
}

}  // namespace

std::string shown_json(const json& value) {
  return shown(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

JsonFields::JsonFields(const json& object, const std::string& file, std::string prefix)
    : object_(&object), file_(&file), prefix_(std::move(prefix)) {
  if (object.is_object()) return;
  const std::string where = prefix_.empty() ? "" : text_of(" field \"", path(), "\":");
  throw Error(text_of(file, ":", where, " expected an object, got ", shown_json(object)));
}

const json* JsonFields::find(std::string_view key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

std::string JsonFields::path() const {
  return prefix_.substr(0, prefix_.empty() ? 0 : prefix_.size() - 1);
}

std::string JsonFields::place() const {
  return prefix_.empty() ? *file_ : text_of(*file_, ": ", path());
}

std::string JsonFields::field(std::string_view key) const {
  return text_of(*file_, ": field \"", prefix_, shown(key), "\"");
}

void JsonFields::fail(std::string_view key, std::string_view expected) const {
  const auto it = object_->find(key);
  const std::string came = it == object_->end() ? "nothing" : shown_json(*it);
  throw Error(text_of(field(key), ": expected ", expected, ", got ", came));
}

std::optional<bool> JsonFields::boolean(std::string_view key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) fail(key, "true or false");
  return value->get<bool>();
}

std::optional<int64_t> JsonFields::integer(std::string_view key, int64_t low, int64_t high) const {
  if (!has(key)) return std::nullopt;
  return integer_at(key, low, high);
}

std::optional<double> JsonFields::number(std::string_view key) const {
  if (!has(key)) return std::nullopt;
  return number_at(key);
}

std::optional<std::string> JsonFields::string(std::string_view key) const {
  if (!has(key)) return std::nullopt;
  return string_at(key);
}

std::optional<std::vector<double>> JsonFields::numbers(std::string_view key) const {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_array() || !std::ranges::all_of(*value, is_number)) fail(key, "a list of numbers");
  return value->get<std::vector<double>>();
}

std::optional<std::vector<int64_t>> JsonFields::integers(std::string_view key, int64_t low, int64_t high) const {
  if (!has(key)) return std::nullopt;
  return integers_at(key, low, high);
}

std::optional<JsonFields> JsonFields::object(std::string_view key) const {
  if (!has(key)) return std::nullopt;
  return object_at(key);
}

JsonFields JsonFields::without_fields(std::string_view key) const {
  static const json kEmpty = json::object();
  return {kEmpty, *file_, text_of(prefix_, shown(key), ".")};
}

int64_t JsonFields::integer_at(std::string_view key, int64_t low, int64_t high) const {
  const json* value = find(key);
  if (!value || !is_integer(*value, low, high)) fail(key, in_range("an integer", low, high));
  return value->get<int64_t>();
}

double JsonFields::number_at(std::string_view key) const {
  const json* value = find(key);
  if (!value || !is_number(*value)) fail(key, "a number");
  return value->get<double>();
}

std::string JsonFields::string_at(std::string_view key) const {
  const json* value = find(key);
  if (!value || !value->is_string()) fail(key, "a string");
  return value->get<std::string>();
}

std::vector<int64_t> JsonFields::integers_at(std::string_view key, int64_t low, int64_t high) const {
  const json* value = find(key);
  const auto fits = [&](const json& item) { return is_integer(item, low, high); };
  if (!value || !value->is_array() || !std::ranges::all_of(*value, fits))
    fail(key, in_range("a list of integers", low, high));
  return value->get<std::vector<int64_t>>();
}

const json& JsonFields::list_at(std::string_view key) const {
  const json* value = find(key);
  if (!value || !value->is_array()) fail(key, "a list");
  return *value;
}

JsonFields JsonFields::object_at(std::string_view key) const {
  const json* value = find(key);
  if (!value || !value->is_object()) fail(key, "an object");
  return {*value, *file_, text_of(prefix_, shown(key), ".")};
}

std::vector<JsonFields> JsonFields::objects_at(std::string_view key) const {
  const json& list = list_at(key);
  std::vector<JsonFields> out;
  for (size_t i = 0; i < list.size(); ++i) out.emplace_back(list[i], *file_, text_of(prefix_, key, "[", i, "]."));
  return out;
}

}  // namespace espalier
