// SPDX-License-Identifier: Apache-2.0
// What operators, subscripts and loops of a chat template do with values, as Python does it. Where Python would raise,
// these throw std::invalid_argument; the interpreter adds file and line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "jinja/budget.h"
#include "jinja/value.h"

namespace espalier::jinja {

[[noreturn]] void raise(const std::string& what);

std::optional<int64_t> as_integer(const Value& value);  // of an integer or a boolean

// The items that a for sees. A generator gives its rest, once.
List items_of(const Value& value, Budget& budget);
int64_t length_of(const Value& value, Budget& budget);

Value attribute_of(const Value& value, const std::string& name, Budget& budget);
Value subscript_of(const Value& value, const Value& index, Budget& budget);
// Python's value[first:last:step].
Value slice_of(const Value& value, std::optional<int64_t> first, std::optional<int64_t> last,
               std::optional<int64_t> step, Budget& budget);

bool equal(const Value& a, const Value& b, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);
bool compare(const std::string& op, const Value& a, const Value& b, Budget& budget);  // ==, <, in, not in and so on
Value arithmetic(const std::string& op, int64_t a, int64_t b);                        // +, -, *, //, %
Value binary(const std::string& op, const Value& a, const Value& b, Budget& budget);  // those and ~

std::string to_json(const Value& value, Budget& budget);  // as Python's json.dumps(value, ensure_ascii=False)

// Where `what` begins in `text` at or behind `from`, in time that grows with their lengths only; npos: nowhere.
size_t find_text(std::string_view text, std::string_view what, size_t from = 0);

}  // namespace espalier::jinja
