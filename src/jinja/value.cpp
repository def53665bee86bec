// SPDX-License-Identifier: Apache-2.0
#include "jinja/value.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "base/utf8.h"

namespace espalier::jinja {
namespace {

// str.isspace of Python.
bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  const auto it = std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == key; });
  return it == items.end() ? nullptr : &it->second;
}

void Dict::set(std::string_view key, Value value) {
  const auto it = std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == key; });
  if (it != items.end()) {
    it->second = std::move(value);
  } else {
    items.emplace_back(key, std::move(value));
  }
}

const List* Value::list() const {
  const auto* pointer = std::get_if<std::shared_ptr<List>>(&held);
  return pointer ? pointer->get() : nullptr;
}

const Dict* Value::dict() const {
  const auto* pointer = std::get_if<std::shared_ptr<Dict>>(&held);
  return pointer ? pointer->get() : nullptr;
}

bool Value::truthy() const {
  if (const bool* boolean = std::get_if<bool>(&held)) return *boolean;
  if (integer()) return *integer() != 0;
  if (string()) return !string()->empty();
  if (list()) return !list()->empty();
  if (dict()) return dict()->is_namespace || !dict()->items.empty();
  return generator() != nullptr;
}

const char* Value::type_name() const {
  static constexpr const char* kNames[] = {"an undefined value", "none",   "a boolean", "an integer",
                                           "a string",           "a list", "a dict",    "a generator"};
  return kNames[held.index()];
}

bool operator==(const Value& a, const Value& b) {
  const auto as_integer = [](const Value& value) -> std::optional<int64_t> {  // True == 1 in Python
    if (const bool* boolean = std::get_if<bool>(&value.held)) return *boolean;
    return value.integer() ? std::optional(*value.integer()) : std::nullopt;
  };
  if (as_integer(a) && as_integer(b)) return as_integer(a) == as_integer(b);
  if (a.held.index() != b.held.index()) return false;
  if (a.string()) return *a.string() == *b.string();
  if (a.list()) return *a.list() == *b.list();
  if (a.generator()) return a.generator()->rest == b.generator()->rest;
  if (!a.dict()) return true;  // undefined or none, both
  if (a.dict()->is_namespace || b.dict()->is_namespace) return a.dict() == b.dict();
  return a.dict()->items.size() == b.dict()->items.size() &&
         std::all_of(a.dict()->items.begin(), a.dict()->items.end(), [&](const auto& item) {
           const Value* other = b.dict()->find(item.first);
           return other && *other == item.second;
         });
}

std::string printed(const Value& value) {
  if (value.is_undefined()) return "";
  if (value.is<None>()) return "None";
  if (const bool* boolean = std::get_if<bool>(&value.held)) return *boolean ? "True" : "False";
  if (value.integer()) return std::to_string(*value.integer());
  if (value.string()) return *value.string();
  throw std::invalid_argument(std::string("printing ") + value.type_name() + " is not supported");
}

std::string to_json(const Value& value) {
  std::string out;
  if (value.is<None>()) return "null";
  if (const bool* boolean = std::get_if<bool>(&value.held)) return *boolean ? "true" : "false";
  if (value.integer()) return std::to_string(*value.integer());
  if (value.string())
    return nlohmann::json(*value.string()).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (value.list()) {
    for (const Value& item : *value.list()) out += (out.empty() ? "" : ", ") + to_json(item);
    return "[" + out + "]";
  }
  if (value.dict() && !value.dict()->is_namespace) {
    for (const auto& [key, item] : value.dict()->items)
      out += (out.empty() ? "" : ", ") + to_json(key) + ": " + to_json(item);
    return "{" + out + "}";
  }
  throw std::invalid_argument(std::string("tojson of ") + value.type_name());
}

std::vector<std::string> characters(std::string_view text) {
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size(); i += out.back().size()) out.emplace_back(text.substr(i, utf8_at(text, i).length));
  return out;
}

std::string strip(std::string_view text, bool left, bool right) {
  size_t first = 0, last = 0;  // last: behind the last character that stays
  bool at_front = true;
  for (size_t i = 0; i < text.size();) {
    const Utf8Character character = utf8_at(text, i);
    const bool space = character.kind == Utf8Character::Kind::kValid && is_space(character.code);
    i += character.length;
    if (space && at_front) first = i;
    if (!space) at_front = false, last = i;
  }
  if (!left) first = 0;
  if (!right) last = text.size();
  return first < last ? std::string(text.substr(first, last - first)) : std::string();
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

}  // namespace espalier::jinja
