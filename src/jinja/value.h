// SPDX-License-Identifier: Apache-2.0
// The values that a chat template computes with, behaving as their Python counterparts do in Jinja.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace espalier::jinja {

struct Value;
using List = std::vector<Value>;

struct Dict {
  std::vector<std::pair<std::string, Value>> items;  // in the order of insertion
  bool is_namespace = false;                         // made by namespace(): its attributes can be set

  const Value* find(std::string_view key) const;  // nullptr when missing
  void set(std::string_view key, Value value);
};

struct Undefined {
  std::string name;  // of what was looked for
};

struct None {};

// What selectattr, rejectattr and map give: it can be walked through once, and has no length.
struct Generator {
  std::shared_ptr<List> rest;
};

// Lists, dicts and generators are shared, as in Python. What they hold may be limits::kTemplateValueDepth deep, so that
// walking through a value, or freeing it, cannot exhaust the stack: making a deeper one throws std::invalid_argument.
struct Value {
  std::variant<Undefined, None, bool, int64_t, std::string, std::shared_ptr<List>, std::shared_ptr<Dict>, Generator>
      held;

  Value() = default;
  Value(Undefined undefined) : held(std::move(undefined)) {}
  Value(None none) : held(none) {}
  Value(bool boolean) : held(boolean) {}
  Value(int64_t integer) : held(integer) {}
  Value(std::string text) : held(std::move(text)) {}
  Value(const char* text) : held(std::string(text)) {}
  Value(List list);
  Value(Generator generator);
  // A namespace counts as one level, whatever its attributes become later: it is compared by identity and never
  // printed, and the interpreter empties it before it is freed.
  Value(Dict dict);

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(held);
  }
  bool is_undefined() const { return is<Undefined>(); }
  const std::string* string() const { return std::get_if<std::string>(&held); }
  const int64_t* integer() const { return std::get_if<int64_t>(&held); }
  const Generator* generator() const { return std::get_if<Generator>(&held); }
  const List* list() const;  // nullptr: no list
  const Dict* dict() const;

  bool truthy() const;
  const char* type_name() const;  // for messages
  int depth() const { return depth_; }

 private:
  int depth_ = 0;  // of lists and dicts in one another
};

// What `{{ value }}` prints. Throws std::invalid_argument for lists and dicts, whose Python form nobody prompts with.
std::string printed(const Value& value);

// Python's string functions. Positions and lengths count characters, not bytes.
std::string strip(std::string_view text, bool left, bool right);
std::vector<std::string> characters(std::string_view text);
size_t count_characters(std::string_view text);
bool is_ascii(std::string_view text);

}  // namespace espalier::jinja
