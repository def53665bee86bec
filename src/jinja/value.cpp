// SPDX-License-Identifier: Apache-2.0
#include "jinja/value.h"

#include <algorithm>
#include <stdexcept>

#include "base/error_text.h"
#include "base/limits.h"
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

namespace {

int deeper(int depth) {
  if (depth < limits::kTemplateValueDepth) return depth + 1;
  throw std::invalid_argument(text_of("lists and dicts in one another more than ", depth, " deep"));
}

int depth_of(const List& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  return deeper(depth);
}

}  // namespace

Value::Value(List list) : depth_(depth_of(list)) {
  held = std::make_shared<List>(std::move(list));
}
Value::Value(Generator generator) : depth_(depth_of(*generator.rest)) {
  held = std::move(generator);
}
Value::Value(Dict dict) {
  for (const auto& [key, item] : dict.items) depth_ = dict.is_namespace ? 0 : std::max(depth_, item.depth());
  depth_ = deeper(depth_);
  held = std::make_shared<Dict>(std::move(dict));
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

std::string printed(const Value& value) {
  if (value.is_undefined()) return "";
  if (value.is<None>()) return "None";
  if (const bool* boolean = std::get_if<bool>(&value.held)) return *boolean ? "True" : "False";
  if (value.integer()) return std::to_string(*value.integer());
  if (value.string()) return *value.string();
  throw std::invalid_argument(std::string("printing ") + value.type_name() + " is not supported");
}

std::vector<std::string> characters(std::string_view text) {
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size(); i += out.back().size()) out.emplace_back(text.substr(i, utf8_at(text, i).length));
  return out;
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (size_t i = 0; i < text.size(); ++count)
    i += static_cast<uint8_t>(text[i]) < 0x80 ? size_t{1} : utf8_at(text, i).length;
  return count;
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
