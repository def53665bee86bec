// SPDX-License-Identifier: Apache-2.0
#include "jinja/built_ins.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/error_text.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "jinja/operations.h"

namespace espalier::jinja {
namespace {

// Python's upper, lower and capitalize. Outside of ASCII they need tables, and no chat template has use for them.
std::string change_case(std::string_view how, std::string text) {
  if (!is_ascii(text)) raise(std::string(how) + " of text that is not ASCII is not supported");
  for (size_t i = 0; i < text.size(); ++i) {
    const bool upper = how == "upper" || (how == "capitalize" && i == 0);
    const char low = upper ? 'a' : 'A', high = upper ? 'z' : 'Z';
    if (text[i] >= low && text[i] <= high) text[i] = static_cast<char>(text[i] ^ 0x20);
  }
  return text;
}

std::string replace(const std::string& text, const std::string& from, const std::string& to, Budget& budget) {
  if (from.empty()) raise("replace of an empty string is not supported");
  budget.spend_text(text.size());
  size_t found = 0;
  for (size_t i = find_text(text, from); i != std::string::npos; i = find_text(text, from, i + from.size())) ++found;
  check_text(text.size() - found * from.size() + found * to.size());
  std::string out;
  size_t done = 0;
  for (size_t i = find_text(text, from); i != std::string::npos; i = find_text(text, from, done)) {
    out.append(text, done, i - done).append(to);
    done = i + from.size();
  }
  return out.append(text, done);
}

// str.split: at white space without a separator.
List split(const std::string& text, const std::string* separator, Budget& budget) {
  List out;
  const auto add = [&](std::string part) {
    check_items(out.size() + 1);
    budget.spend_text(part.size());
    out.emplace_back(std::move(part));
  };
  if (separator) {
    if (separator->empty()) raise("split at an empty string");
    size_t done = 0;
    for (size_t i = find_text(text, *separator); i != std::string::npos; i = find_text(text, *separator, done)) {
      add(text.substr(done, i - done));
      done = i + separator->size();
    }
    add(text.substr(done));
    return out;
  }
  budget.spend_text(text.size());
  std::string word;
  for (size_t i = 0; i < text.size();) {
    const std::string character = text.substr(i, utf8_at(text, i).length);
    i += character.size();
    const bool space = strip(character, true, true).empty();
    if (!space) word += character;
    if (space && !word.empty()) add(std::exchange(word, ""));
  }
  if (!word.empty()) add(word);
  return out;
}

std::string join(const List& items, const std::string& separator, Budget& budget) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string item = printed(items[i]);
    budget.spend_text(separator.size() + item.size());
    if (i) out += separator;
    out += item;
    check_text(out.size());
  }
  return out;
}

const std::string& string_argument(const Call& call, size_t i) {
  const Value& argument = call.arguments[i];
  if (!argument.string()) raise(std::string(call.name) + " wants a string, not " + argument.type_name());
  return *argument.string();
}

// ---- filters ----

Value first_or_last(const Call& call) {
  const bool first = call.name == "first";
  if (!first && call.value.generator()) raise("last of a generator");
  const List items = items_of(call.value, call.budget);
  if (items.empty()) return Undefined{std::string(call.name)};
  return first ? items.front() : items.back();
}

// default(other, boolean): `boolean` also replaces what is there and false.
Value or_default(const Call& call) {
  const List& arguments = call.arguments;
  const Value* boolean = arguments.size() > 1 ? &arguments[1] : call.keywords.find("boolean");
  const bool missing = call.value.is_undefined() || (boolean && boolean->truthy() && !call.value.truthy());
  return missing ? (arguments.empty() ? Value("") : arguments[0]) : call.value;
}

// "a.b" of a dict of dicts, as selectattr and map take it.
Value path_of(Value value, const std::string& path, Budget& budget) {
  const std::string dot = ".";
  for (const Value& name : split(path, &dot, budget)) value = attribute_of(value, *name.string(), budget);
  budget.spend(value);
  return value;
}

Value map_attribute(const Call& call) {
  const Value* attribute = call.keywords.find("attribute");
  if (!attribute || !attribute->string()) raise("map without attribute= is not supported");
  auto out = std::make_shared<List>();
  for (const Value& item : items_of(call.value, call.budget))
    out->push_back(path_of(item, *attribute->string(), call.budget));
  return Generator{out};
}

// selectattr and rejectattr(attribute, test, its arguments); without a test: what is true. The parser has looked the
// test up.
Value select_by_attribute(const Call& call) {
  const List& arguments = call.arguments;
  const BuiltIn* test = arguments.size() > 1 ? find_test(*arguments[1].string()) : nullptr;
  const List rest(arguments.begin() + static_cast<ptrdiff_t>(std::min<size_t>(2, arguments.size())), arguments.end());
  auto out = std::make_shared<List>();
  for (const Value& item : items_of(call.value, call.budget)) {
    const Value attribute = path_of(item, string_argument(call, 0), call.budget);
    const bool found =
        (test ? test->run({test->name, attribute, rest, call.keywords, call.budget}) : attribute).truthy();
    if (found == (call.name == "selectattr")) out->push_back(item);
  }
  return Generator{out};
}

Value to_upper_or_lower(const Call& call) {
  return change_case(call.name, printed(call.value));
}
Value length(const Call& call) {
  return length_of(call.value, call.budget);
}

constexpr BuiltIn kFilters[] = {
    {"capitalize", 0, 0, to_upper_or_lower},
    {"count", 0, 0, length},
    {"d", 0, 2, or_default, "boolean"},
    {"default", 0, 2, or_default, "boolean"},
    {"first", 0, 0, first_or_last},
    {"join", 0, 1,
     [](const Call& c) -> Value {
       return join(items_of(c.value, c.budget), c.arguments.empty() ? "" : printed(c.arguments[0]), c.budget);
     }},
    {"last", 0, 0, first_or_last},
    {"length", 0, 0, length},
    {"list", 0, 0, [](const Call& c) -> Value { return items_of(c.value, c.budget); }},
    {"lower", 0, 0, to_upper_or_lower},
    {"map", 0, 0, map_attribute, "attribute"},
    {"rejectattr", 1, 3, select_by_attribute},
    {"replace", 2, 2,
     [](const Call& c) -> Value {
       return replace(printed(c.value), printed(c.arguments[0]), printed(c.arguments[1]), c.budget);
     }},
    {"selectattr", 1, 3, select_by_attribute},
    {"string", 0, 0, [](const Call& c) -> Value { return printed(c.value); }},
    {"tojson", 0, 0, [](const Call& c) -> Value { return to_json(c.value, c.budget); }},
    {"trim", 0, 0, [](const Call& c) -> Value { return strip(printed(c.value), true, true); }},
    {"upper", 0, 0, to_upper_or_lower}};

// ---- tests ----

bool is_divisible(const Call& call, int64_t divisor) {
  const std::optional<int64_t> integer = as_integer(call.value);
  if (!integer || divisor == 0) raise("the test " + std::string(call.name) + " wants an integer");
  return divisor == -1 || *integer % divisor == 0;
}

bool is_sequence(const Value& value) {
  return value.list() || value.string() || value.dict() || value.is_undefined();
}

Value is_equal(const Call& call) {
  return equal(call.value, call.arguments[0], call.budget);
}

constexpr BuiltIn kTests[] = {
    {"boolean", 0, 0, [](const Call& c) -> Value { return c.value.is<bool>(); }},
    {"defined", 0, 0, [](const Call& c) -> Value { return !c.value.is_undefined(); }},
    {"divisibleby", 1, 1,
     [](const Call& c) -> Value { return is_divisible(c, as_integer(c.arguments[0]).value_or(0)); }},
    {"eq", 1, 1, is_equal},
    {"equalto", 1, 1, is_equal},
    {"even", 0, 0, [](const Call& c) -> Value { return is_divisible(c, 2); }},
    {"false", 0, 0, [](const Call& c) -> Value { return c.value.is<bool>() && !c.value.truthy(); }},
    {"in", 1, 1, [](const Call& c) -> Value { return contains(c.arguments[0], c.value, c.budget); }},
    {"integer", 0, 0, [](const Call& c) -> Value { return c.value.integer() != nullptr; }},
    {"iterable", 0, 0, [](const Call& c) -> Value { return is_sequence(c.value) || c.value.generator() != nullptr; }},
    {"mapping", 0, 0, [](const Call& c) -> Value { return c.value.dict() && !c.value.dict()->is_namespace; }},
    {"ne", 1, 1, [](const Call& c) -> Value { return !equal(c.value, c.arguments[0], c.budget); }},
    {"none", 0, 0, [](const Call& c) -> Value { return c.value.is<None>(); }},
    {"number", 0, 0, [](const Call& c) -> Value { return as_integer(c.value).has_value(); }},
    {"odd", 0, 0, [](const Call& c) -> Value { return !is_divisible(c, 2); }},
    {"sequence", 0, 0, [](const Call& c) -> Value { return is_sequence(c.value); }},
    {"string", 0, 0, [](const Call& c) -> Value { return c.value.string() != nullptr; }},
    {"true", 0, 0, [](const Call& c) -> Value { return c.value.is<bool>() && c.value.truthy(); }},
    {"undefined", 0, 0, [](const Call& c) -> Value { return c.value.is_undefined(); }}};

// ---- methods ----

[[noreturn]] void refuse_method(const Call& call) {
  if (const auto* undefined = std::get_if<Undefined>(&call.value.held))
    raise("'" + shown(undefined->name) + "' is undefined");
  raise(std::string(call.value.type_name()) + " has no method " + std::string(call.name));
}

const std::string& own_text(const Call& call) {
  if (!call.value.string()) refuse_method(call);
  return *call.value.string();
}

const Dict& own_dict(const Call& call) {
  if (!call.value.dict() || call.value.dict()->is_namespace) refuse_method(call);
  return *call.value.dict();
}

Value change_own_case(const Call& call) {
  return change_case(call.name, own_text(call));
}

// The text first: without one the method is refused, whatever its arguments are.
Value join_items(const Call& call) {
  const std::string& separator = own_text(call);
  return join(items_of(call.arguments[0], call.budget), separator, call.budget);
}

Value replace_own(const Call& call) {
  const std::string& text = own_text(call);
  const std::string& from = string_argument(call, 0);
  return replace(text, from, string_argument(call, 1), call.budget);
}

Value split_own(const Call& call) {
  const std::string& text = own_text(call);
  return split(text, call.arguments.empty() ? nullptr : &string_argument(call, 0), call.budget);
}

Value get(const Call& call) {
  call.budget.spend(own_dict(call).items.size() / 8);
  const Value* found = own_dict(call).find(string_argument(call, 0));
  return found ? *found : call.arguments.size() > 1 ? call.arguments[1] : Value(None{});
}

// One of items, keys and values: `part` makes an entry of the list.
template <typename Part>
Value entries(const Call& call, Part part) {
  List out;
  for (const auto& [key, value] : own_dict(call).items) {
    call.budget.spend_text(key.size());
    call.budget.spend(value);
    out.emplace_back(part(key, value));
  }
  return out;
}

constexpr BuiltIn kMethods[] = {
    {"capitalize", 0, 0, change_own_case},
    {"endswith", 1, 1, [](const Call& c) -> Value { return own_text(c).ends_with(string_argument(c, 0)); }},
    {"get", 1, 2, get},
    {"items", 0, 0,
     [](const Call& c) -> Value {
       return entries(c, [](const std::string& key, const Value& value) { return Value(List{key, value}); });
     }},
    {"join", 1, 1, join_items},
    {"keys", 0, 0,
     [](const Call& c) -> Value {
       return entries(c, [](const std::string& key, const Value&) { return Value(key); });
     }},
    {"lower", 0, 0, change_own_case},
    {"lstrip", 0, 0, [](const Call& c) -> Value { return strip(own_text(c), true, false); }},
    {"replace", 2, 2, replace_own},
    {"rstrip", 0, 0, [](const Call& c) -> Value { return strip(own_text(c), false, true); }},
    {"split", 0, 1, split_own},
    {"startswith", 1, 1, [](const Call& c) -> Value { return own_text(c).starts_with(string_argument(c, 0)); }},
    {"strip", 0, 0, [](const Call& c) -> Value { return strip(own_text(c), true, true); }},
    {"upper", 0, 0, change_own_case},
    {"values", 0, 0,
     [](const Call& c) -> Value { return entries(c, [](const std::string&, const Value& value) { return value; }); }}};

// ---- functions ----

Value range(const Call& call) {
  std::vector<int64_t> numbers;
  for (const Value& argument : call.arguments) {
    if (!as_integer(argument)) raise(std::string("range wants integers, not ") + argument.type_name());
    numbers.push_back(*as_integer(argument));
  }
  const int64_t begin = numbers.size() > 1 ? numbers[0] : 0, end = numbers.size() > 1 ? numbers[1] : numbers[0];
  const int64_t step = numbers.size() > 2 ? numbers[2] : 1;
  if (step == 0) raise("range with step 0");
  List out;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (std::ssize(out) == limits::kTemplateRange) raise(text_of("range of more than ", limits::kTemplateRange));
    call.budget.spend(1);
    out.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return out;
}

constexpr BuiltIn kFunctions[] = {
    {"namespace", 0, 0,
     [](const Call& c) -> Value {
       Dict out = c.keywords;
       out.is_namespace = true;
       return out;
     },
     "*"},
    {"raise_exception", 1, 1, [](const Call& c) -> Value { throw RaisedByTemplate{printed(c.arguments[0])}; }},
    {"range", 1, 3, range}};

const BuiltIn* find(std::span<const BuiltIn> table, std::string_view name) {
  const auto found = std::ranges::find(table, name, &BuiltIn::name);
  return found == table.end() ? nullptr : &*found;
}

}  // namespace

const BuiltIn* find_filter(std::string_view name) {
  return find(kFilters, name);
}
const BuiltIn* find_test(std::string_view name) {
  return find(kTests, name);
}
const BuiltIn* find_method(std::string_view name) {
  return find(kMethods, name);
}
const BuiltIn* find_function(std::string_view name) {
  return find(kFunctions, name);
}

}  // namespace espalier::jinja
