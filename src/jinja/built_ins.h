// SPDX-License-Identifier: Apache-2.0
// The filters, tests, methods and functions that a chat template may use: one row each, with the arguments that the
// parser lets through and what the interpreter calls.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "jinja/budget.h"
#include "jinja/value.h"

namespace espalier::jinja {

struct Call {
  std::string_view name;
  const Value& value;  // what a filter or a test is given, or whose method it is; undefined for a function
  const List& arguments;
  const Dict& keywords;
  Budget& budget;  // of the rendering
};

struct BuiltIn {
  std::string_view name;
  size_t least, most;  // positional arguments, the value itself not counted
  Value (*run)(const Call& call);
  std::string_view keyword = "";  // the one that may be given by name; "*": any
};

// nullptr: there is none of that name.
const BuiltIn* find_filter(std::string_view name);
const BuiltIn* find_test(std::string_view name);
const BuiltIn* find_method(std::string_view name);
const BuiltIn* find_function(std::string_view name);

// What raise_exception throws: the template's own words.
struct RaisedByTemplate {
  std::string words;
};

}  // namespace espalier::jinja
