// SPDX-License-Identifier: Apache-2.0
#include "jinja/operations.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace espalier::jinja {

void raise(const std::string& what) {
  throw std::invalid_argument(what);
}

std::optional<int64_t> as_integer(const Value& value) {
  if (const bool* boolean = std::get_if<bool>(&value.held)) return *boolean;
  return value.integer() ? std::optional(*value.integer()) : std::nullopt;
}

List items_of(const Value& value) {
  List out;
  if (value.list()) return *value.list();
  if (value.generator()) {
    std::swap(out, *value.generator()->rest);
  } else if (value.string()) {
    for (std::string& character : characters(*value.string())) out.emplace_back(std::move(character));
  } else if (value.dict() && !value.dict()->is_namespace) {
    for (const auto& [key, item] : value.dict()->items) out.emplace_back(key);
  } else if (!value.is_undefined()) {
    raise(std::string(value.type_name()) + " cannot be iterated");
  }
  return out;
}

int64_t length_of(const Value& value) {
  if (value.generator()) raise("a generator has no length: put `| list` in front");
  return static_cast<int64_t>(items_of(value).size());
}

Value attribute_of(const Value& value, const std::string& name) {
  if (const auto* undefined = std::get_if<Undefined>(&value.held)) raise("'" + undefined->name + "' is undefined");
  const Value* found = value.dict() ? value.dict()->find(name) : nullptr;
  return found ? *found : Value(Undefined{name});
}

Value subscript_of(const Value& value, const Value& index) {
  if (index.string() || value.is_undefined()) return attribute_of(value, index.string() ? *index.string() : "");
  const std::optional<int64_t> position = as_integer(index);
  if (!position || !(value.list() || value.string())) return Undefined{printed(index)};
  const List items = items_of(value);
  const int64_t size = static_cast<int64_t>(items.size());
  const int64_t i = *position < 0 ? *position + size : *position;
  return i >= 0 && i < size ? items[static_cast<size_t>(i)] : Value(Undefined{std::to_string(*position)});
}

Value slice_of(const Value& value, std::optional<int64_t> first, std::optional<int64_t> last,
               std::optional<int64_t> step) {
  if (!value.list() && !value.string()) raise(std::string("a slice of ") + value.type_name());
  const List items = items_of(value);
  const int64_t size = static_cast<int64_t>(items.size()), stride = step.value_or(1);
  if (stride == 0) raise("a slice with step 0");
  const int64_t lowest = stride > 0 ? 0 : -1, highest = stride > 0 ? size : size - 1;
  const auto bound = [&](std::optional<int64_t> position, int64_t absent) {
    if (!position) return absent;
    return std::clamp(*position < 0 ? *position + size : *position, lowest, highest);
  };
  const int64_t begin = bound(first, stride > 0 ? 0 : size - 1), end = bound(last, stride > 0 ? size : -1);
  List out;
  for (int64_t i = begin; stride > 0 ? i < end : i > end; i += stride) out.push_back(items[static_cast<size_t>(i)]);
  if (value.list()) return out;
  std::string text;
  for (const Value& item : out) text += *item.string();
  return text;
}

bool contains(const Value& container, const Value& item) {
  if (container.string()) {
    if (!item.string()) raise(std::string("\"in\" a string wants a string, not ") + item.type_name());
    return container.string()->find(*item.string()) != std::string::npos;
  }
  const List items = items_of(container);
  return std::find(items.begin(), items.end(), item) != items.end();
}

bool compare(const std::string& op, const Value& a, const Value& b) {
  if (op == "==") return a == b;
  if (op == "!=") return !(a == b);
  if (op == "in") return contains(b, a);
  if (op == "not in") return !contains(b, a);
  int order = 0;
  if (as_integer(a) && as_integer(b)) {
    order = *as_integer(a) < *as_integer(b) ? -1 : *as_integer(a) > *as_integer(b);
  } else if (a.string() && b.string()) {
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

Value binary(const std::string& op, const Value& a, const Value& b) {
  if (op == "~") {
    std::string text = printed(a) + printed(b);
    if (text.size() > kMaxLength) raise("a string grows too long");
    return text;
  }
  if (as_integer(a) && as_integer(b)) return arithmetic(op, *as_integer(a), *as_integer(b));
  if (op == "+" && a.string() && b.string()) {
    if (a.string()->size() + b.string()->size() > kMaxLength) raise("a string grows too long");
    return *a.string() + *b.string();
  }
  if (op == "+" && a.list() && b.list()) {
    List out = *a.list();
    out.insert(out.end(), b.list()->begin(), b.list()->end());
    if (out.size() > kMaxLength / sizeof(Value)) raise("a list grows too long");
    return out;
  }
  for (const Value* side : {&a, &b}) {
    if (const auto* undefined = std::get_if<Undefined>(&side->held)) raise("'" + undefined->name + "' is undefined");
  }
  raise("\"" + op + "\" between " + a.type_name() + " and " + b.type_name());
}

}  // namespace espalier::jinja
