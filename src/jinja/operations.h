// SPDX-License-Identifier: Apache-2.0
// What operators, subscripts and loops of a chat template do with values, as Python does it. Where Python would raise,
// these throw std::invalid_argument; the interpreter adds file and line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "jinja/value.h"

namespace espalier::jinja {

// Characters of a string, and of the whole output; no real template reaches it, and one that does would fill the
// memory.
constexpr size_t kMaxLength = size_t{1} << 24;

[[noreturn]] void raise(const std::string& what);

std::optional<int64_t> as_integer(const Value& value);  // of an integer or a boolean

// The items that a for sees. A generator gives its rest, once.
List items_of(const Value& value);
int64_t length_of(const Value& value);

Value attribute_of(const Value& value, const std::string& name);
Value subscript_of(const Value& value, const Value& index);
// Python's value[first:last:step].
Value slice_of(const Value& value, std::optional<int64_t> first, std::optional<int64_t> last,
               std::optional<int64_t> step);

bool contains(const Value& container, const Value& item);
bool compare(const std::string& op, const Value& a, const Value& b);  // ==, !=, <, <=, >, >=, in, not in
Value arithmetic(const std::string& op, int64_t a, int64_t b);        // +, -, *, //, %
Value binary(const std::string& op, const Value& a, const Value& b);  // those and ~

}  // namespace espalier::jinja
