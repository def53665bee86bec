// SPDX-License-Identifier: Apache-2.0
#include "jinja/operations.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/error_text.h"
#include "base/utf8.h"

namespace espalier::jinja {

void raise(const std::string& what) {
  throw std::invalid_argument(what);
}

std::optional<int64_t> as_integer(const Value& value) {
  if (const bool* boolean = std::get_if<bool>(&value.held)) return *boolean;
  return value.integer() ? std::optional(*value.integer()) : std::nullopt;
}

List items_of(const Value& value, Budget& budget) {
  List out;
  if (value.list()) {
    budget.spend_items(*value.list());
    return *value.list();
  }
  if (value.generator()) {
    budget.spend(value.generator()->rest->size());
    std::swap(out, *value.generator()->rest);
  } else if (value.string()) {
    const size_t count = count_characters(*value.string());
    check_items(count);
    budget.spend(count);
    for (std::string& character : characters(*value.string())) out.emplace_back(std::move(character));
  } else if (value.dict() && !value.dict()->is_namespace) {
    for (const auto& [key, item] : value.dict()->items) budget.spend_text(key.size());
    for (const auto& [key, item] : value.dict()->items) out.emplace_back(key);
  } else if (!value.is_undefined()) {
    raise(std::string(value.type_name()) + " cannot be iterated");
  }
  return out;
}

int64_t length_of(const Value& value, Budget& budget) {
  if (value.generator()) raise("a generator has no length: put `| list` in front");
  if (value.list()) return static_cast<int64_t>(value.list()->size());
  if (value.string()) {
    budget.spend(value);
    return static_cast<int64_t>(count_characters(*value.string()));
  }
  return static_cast<int64_t>(items_of(value, budget).size());
}

Value attribute_of(const Value& value, const std::string& name, Budget& budget) {
  if (const auto* undefined = std::get_if<Undefined>(&value.held))
    raise("'" + shown(undefined->name) + "' is undefined");
  if (!value.dict()) return Undefined{name};
  budget.spend(value.dict()->items.size() / 8);
  const Value* found = value.dict()->find(name);
  return found ? *found : Value(Undefined{name});
}

Value subscript_of(const Value& value, const Value& index, Budget& budget) {
  if (index.string() || value.is_undefined()) return attribute_of(value, index.string() ? *index.string() : "", budget);
  const std::optional<int64_t> position = as_integer(index);
  if (!position || !(value.list() || value.string())) return Undefined{printed(index)};
  const int64_t size = length_of(value, budget);
  const int64_t i = *position < 0 ? *position + size : *position;
  if (i < 0 || i >= size) return Undefined{std::to_string(*position)};
  if (value.list()) return (*value.list())[static_cast<size_t>(i)];
  const std::string& text = *value.string();
  size_t begin = 0;
  for (int64_t passed = 0; passed < i; ++passed) begin += utf8_at(text, begin).length;
  return text.substr(begin, utf8_at(text, begin).length);
}

Value slice_of(const Value& value, std::optional<int64_t> first, std::optional<int64_t> last,
               std::optional<int64_t> step, Budget& budget) {
  if (!value.list() && !value.string()) raise(std::string("a slice of ") + value.type_name());
  const int64_t size = length_of(value, budget);
  // A stride as long as the value leads out of it as any longer one does.
  const int64_t stride = std::clamp(step.value_or(1), -size - 1, size + 1);
  if (stride == 0) raise("a slice with step 0");
  const int64_t lowest = stride > 0 ? 0 : -1, highest = stride > 0 ? size : size - 1;
  const auto bound = [&](std::optional<int64_t> position, int64_t absent) {
    if (!position) return absent;
    return std::clamp(*position < 0 ? *position + size : *position, lowest, highest);
  };
  const int64_t begin = bound(first, stride > 0 ? 0 : size - 1), end = bound(last, stride > 0 ? size : -1);
  const auto each = [&](const auto& take) {
    for (int64_t i = begin; stride > 0 ? i < end : i > end; i += stride) take(static_cast<size_t>(i));
  };
  if (value.list()) {
    List out;
    each([&](size_t i) {
      budget.spend((*value.list())[i]);
      out.push_back((*value.list())[i]);
    });
    return out;
  }
  std::vector<size_t> begins;  // of the characters
  const std::string& text = *value.string();
  for (size_t i = 0; i < text.size(); i += utf8_at(text, i).length) begins.push_back(i);
  begins.push_back(text.size());
  std::string out;
  each([&](size_t i) { out.append(text, begins[i], begins[i + 1] - begins[i]); });
  return out;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.spend(a);
  const auto each_equal = [&](const List& x, const List& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                      [&](const Value& p, const Value& q) { return equal(p, q, budget); });
  };
  if (as_integer(a) && as_integer(b)) return as_integer(a) == as_integer(b);  // True == 1 in Python
  if (a.held.index() != b.held.index()) return false;
  if (a.string()) return *a.string() == *b.string();
  if (a.list()) return each_equal(*a.list(), *b.list());
  if (a.generator()) return a.generator()->rest == b.generator()->rest;
  if (!a.dict()) return true;  // undefined or none, both
  if (a.dict()->is_namespace || b.dict()->is_namespace) return a.dict() == b.dict();
  return a.dict()->items.size() == b.dict()->items.size() &&
         std::all_of(a.dict()->items.begin(), a.dict()->items.end(), [&](const auto& item) {
           budget.spend(b.dict()->items.size() / 8);
           const Value* other = b.dict()->find(item.first);
           return other && equal(*other, item.second, budget);
         });
}

size_t find_text(std::string_view text, std::string_view what, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const void* found = ::memmem(text.data() + from, text.size() - from, what.data(), what.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.string()) {
    if (!item.string()) raise(std::string("\"in\" a string wants a string, not ") + item.type_name());
    budget.spend(container);
    return find_text(*container.string(), *item.string()) != std::string_view::npos;
  }
  const List items = items_of(container, budget);
  return std::any_of(items.begin(), items.end(), [&](const Value& other) { return equal(other, item, budget); });
}

bool compare(const std::string& op, const Value& a, const Value& b, Budget& budget) {
  if (op == "==") return equal(a, b, budget);
  if (op == "!=") return !equal(a, b, budget);
  if (op == "in") return contains(b, a, budget);
  if (op == "not in") return !contains(b, a, budget);
  int order = 0;
  if (as_integer(a) && as_integer(b)) {
    order = *as_integer(a) < *as_integer(b) ? -1 : *as_integer(a) > *as_integer(b);
  } else if (a.string() && b.string()) {
    budget.spend(a);
    order = a.string()->compare(*b.string());  // bytes of UTF-8 sort as their characters do
  } else {
    raise("\"" + op + "\" between " + a.type_name() + " and " + b.type_name());
  }
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  return op == ">" ? order > 0 : order >= 0;
}

Value arithmetic(const std::string& op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (op == "+") overflow = __builtin_add_overflow(a, b, &out);
  if (op == "-") overflow = __builtin_sub_overflow(a, b, &out);
  if (op == "*") overflow = __builtin_mul_overflow(a, b, &out);
  if (op == "//" || op == "%") {
    if (b == 0) raise("division by zero");
    if (b == -1) return op == "%" ? Value(int64_t{0}) : arithmetic("-", 0, a);
    const int64_t quotient = a / b - (a % b != 0 && (a < 0) != (b < 0));  // Python rounds down
    out = op == "//" ? quotient : a - quotient * b;
  }
  if (overflow) raise("integer overflow");
  return out;
}

Value binary(const std::string& op, const Value& a, const Value& b, Budget& budget) {
  if (op == "~") {
    const std::string left = printed(a), right = printed(b);
    check_text(left.size() + right.size());
    return left + right;
  }
  if (as_integer(a) && as_integer(b)) return arithmetic(op, *as_integer(a), *as_integer(b));
  if (op == "+" && a.string() && b.string()) {
    check_text(a.string()->size() + b.string()->size());
    return *a.string() + *b.string();
  }
  if (op == "+" && a.list() && b.list()) {
    check_items(a.list()->size() + b.list()->size());
    budget.spend_items(*a.list());
    budget.spend_items(*b.list());
    List out = *a.list();
    out.insert(out.end(), b.list()->begin(), b.list()->end());
    return out;
  }
  for (const Value* side : {&a, &b}) {
    if (const auto* undefined = std::get_if<Undefined>(&side->held))
      raise("'" + shown(undefined->name) + "' is undefined");
  }
  raise("\"" + op + "\" between " + a.type_name() + " and " + b.type_name());
}

namespace {

// Appended to `out`, so that a deep value is not copied once per level.
void append_json(const Value& value, std::string& out, Budget& budget) {
  budget.spend(value);
  check_text(out.size());
  const auto append_string = [&](const std::string& text) {
    out += nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  if (value.is<None>()) {
    out += "null";
  } else if (const bool* boolean = std::get_if<bool>(&value.held)) {
    out += *boolean ? "true" : "false";
  } else if (value.integer()) {
    out += std::to_string(*value.integer());
  } else if (value.string()) {
    append_string(*value.string());
  } else if (value.list()) {
    const char* separator = "[";
    for (const Value& item : *value.list()) {
      out += separator;
      append_json(item, out, budget);
      separator = ", ";
    }
    out += value.list()->empty() ? "[]" : "]";
  } else if (value.dict() && !value.dict()->is_namespace) {
    const char* separator = "{";
    for (const auto& [key, item] : value.dict()->items) {
      out += separator;
      append_string(key);
      out += ": ";
      append_json(item, out, budget);
      separator = ", ";
    }
    out += value.dict()->items.empty() ? "{}" : "}";
  } else {
    raise(std::string("tojson of ") + value.type_name());
  }
}

}  // namespace

std::string to_json(const Value& value, Budget& budget) {
  std::string out;
  append_json(value, out, budget);
  check_text(out.size());
  return out;
}

}  // namespace espalier::jinja
