// SPDX-License-Identifier: Apache-2.0
#include "jinja/interpreter.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "espalier/error.h"

namespace espalier::jinja {
namespace {

using Node = Expression::Kind;

// Limits that no real template reaches: one that does would fill the memory or run for ever.
constexpr int64_t kMaxSteps = 1'000'000;
constexpr size_t kMaxLength = size_t{1} << 24;
constexpr int64_t kMaxRange = 100'000;

// Where Python would raise. The interpreter adds file and line.
[[noreturn]] void raise(const std::string& what) {
  throw std::invalid_argument(what);
}

std::optional<int64_t> as_integer(const Value& value) {
  if (const bool* boolean = std::get_if<bool>(&value.held)) return *boolean;
  return value.integer() ? std::optional(*value.integer()) : std::nullopt;
}

// The items that a for sees. A generator gives its rest, once.
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

// Python's value[first:last:step].
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

// Python's upper, lower and capitalize. Outside of ASCII they need tables, and no chat template has use for them.
std::string change_case(const std::string& how, std::string text) {
  if (!is_ascii(text)) raise(how + " of text that is not ASCII is not supported");
  for (size_t i = 0; i < text.size(); ++i) {
    const bool upper = how == "upper" || (how == "capitalize" && i == 0);
    const char low = upper ? 'a' : 'A', high = upper ? 'z' : 'Z';
    if (text[i] >= low && text[i] <= high) text[i] = static_cast<char>(text[i] ^ 0x20);
  }
  return text;
}

std::string replace(const std::string& text, const std::string& from, const std::string& to) {
  if (from.empty()) raise("replace of an empty string is not supported");
  std::string out;
  size_t done = 0;
  for (size_t i = text.find(from); i != std::string::npos; i = text.find(from, done)) {
    out.append(text, done, i - done).append(to);
    done = i + from.size();
  }
  return out.append(text, done);
}

// str.split: at white space without a separator.
List split(const std::string& text, const std::string* separator) {
  List out;
  if (separator) {
    if (separator->empty()) raise("split at an empty string");
    size_t done = 0;
    for (size_t i = text.find(*separator); i != std::string::npos; i = text.find(*separator, done)) {
      out.emplace_back(text.substr(done, i - done));
      done = i + separator->size();
    }
    out.emplace_back(text.substr(done));
    return out;
  }
  std::string word;
  for (const std::string& character : characters(text)) {
    const bool space = strip(character, true, true).empty();
    if (!space) word += character;
    if (space && !word.empty()) out.emplace_back(std::exchange(word, ""));
  }
  if (!word.empty()) out.emplace_back(word);
  return out;
}

std::string join(const List& items, const std::string& separator) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) out += (i ? separator : "") + printed(items[i]);
  return out;
}

const std::string& string_argument(const List& arguments, size_t i, const std::string& what) {
  if (!arguments[i].string()) raise(what + " wants a string, not " + arguments[i].type_name());
  return *arguments[i].string();
}

Value string_method(const std::string& name, const std::string& text, const List& arguments) {
  const auto argument = [&](size_t i) -> const std::string& { return string_argument(arguments, i, name); };
  if (name == "strip") return strip(text, true, true);
  if (name == "lstrip") return strip(text, true, false);
  if (name == "rstrip") return strip(text, false, true);
  if (name == "upper" || name == "lower" || name == "capitalize") return change_case(name, text);
  if (name == "startswith") return text.starts_with(argument(0));
  if (name == "endswith") return text.ends_with(argument(0));
  if (name == "replace") return replace(text, argument(0), argument(1));
  if (name == "join") return join(items_of(arguments[0]), text);
  if (name == "split") return split(text, arguments.empty() ? nullptr : &argument(0));
  raise("a string has no method " + name);
}

Value dict_method(const std::string& name, const Dict& dict, const List& arguments) {
  List out;
  if (name == "get") {
    const Value* found = dict.find(string_argument(arguments, 0, name));
    return found ? *found : arguments.size() > 1 ? arguments[1] : Value(None{});
  }
  for (const auto& [key, value] : dict.items) {
    if (name == "items") out.emplace_back(List{key, value});
    if (name == "keys") out.emplace_back(key);
    if (name == "values") out.push_back(value);
  }
  if (name != "items" && name != "keys" && name != "values") raise("a dict has no method " + name);
  return out;
}

bool test(const std::string& name, const Value& value, const List& arguments) {
  const auto integer = as_integer(value);
  const auto divisible_by = [&](int64_t divisor) {
    if (!integer || divisor == 0) raise("the test " + name + " wants an integer");
    return divisor == -1 || *integer % divisor == 0;
  };
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is<None>();
  if (name == "string") return value.string() != nullptr;
  if (name == "mapping") return value.dict() && !value.dict()->is_namespace;
  if (name == "sequence") return value.list() || value.string() || value.dict() || value.is_undefined();
  if (name == "iterable")
    return value.list() || value.string() || value.dict() || value.generator() || value.is_undefined();
  if (name == "boolean") return value.is<bool>();
  if (name == "true" || name == "false") return value.is<bool>() && value.truthy() == (name == "true");
  if (name == "integer") return value.integer() != nullptr;
  if (name == "number") return integer.has_value();
  if (name == "even") return divisible_by(2);
  if (name == "odd") return !divisible_by(2);
  if (name == "divisibleby") return divisible_by(as_integer(arguments[0]).value_or(0));
  if (name == "in") return contains(arguments[0], value);
  return (value == arguments[0]) == (name != "ne");  // eq, equalto
}

// "a.b" of a dict of dicts, as selectattr and map take it.
Value path_of(Value value, const std::string& path) {
  const std::string dot = ".";
  for (const Value& name : split(path, &dot)) value = attribute_of(value, *name.string());
  return value;
}

Value select_by_attribute(const Value& value, const List& arguments, bool wanted) {
  auto out = std::make_shared<List>();
  for (const Value& item : items_of(value)) {
    const Value attribute = path_of(item, string_argument(arguments, 0, "selectattr"));
    const List rest(arguments.begin() + static_cast<ptrdiff_t>(std::min<size_t>(2, arguments.size())), arguments.end());
    const bool found = arguments.size() > 1 ? test(*arguments[1].string(), attribute, rest) : attribute.truthy();
    if (found == wanted) out->push_back(item);
  }
  return Generator{out};
}

Value filter(const std::string& name, const Value& value, const List& arguments, const Dict& keywords) {
  if (name == "trim") return strip(printed(value), true, true);
  if (name == "upper" || name == "lower" || name == "capitalize") return change_case(name, printed(value));
  if (name == "string") return printed(value);
  if (name == "length" || name == "count") return length_of(value);
  if (name == "list") return items_of(value);
  if (name == "join") return join(items_of(value), arguments.empty() ? "" : printed(arguments[0]));
  if (name == "tojson") return to_json(value);
  if (name == "replace") return replace(printed(value), printed(arguments[0]), printed(arguments[1]));
  if (name == "selectattr" || name == "rejectattr") return select_by_attribute(value, arguments, name == "selectattr");
  if (name == "first" || name == "last") {
    if (name == "last" && value.generator()) raise("last of a generator");
    const List items = items_of(value);
    if (items.empty()) return Undefined{name};
    return name == "first" ? items.front() : items.back();
  }
  if (name == "map") {
    const Value* attribute = keywords.find("attribute");
    if (!attribute || !attribute->string()) raise("map without attribute= is not supported");
    auto out = std::make_shared<List>();
    for (const Value& item : items_of(value)) out->push_back(path_of(item, *attribute->string()));
    return Generator{out};
  }
  const Value* boolean = arguments.size() > 1 ? &arguments[1] : keywords.find("boolean");  // default, d
  const bool missing = value.is_undefined() || (boolean && boolean->truthy() && !value.truthy());
  return missing ? (arguments.empty() ? Value("") : arguments[0]) : value;
}

Value range(const List& arguments) {
  std::vector<int64_t> numbers;
  for (const Value& argument : arguments) {
    if (!as_integer(argument)) raise(std::string("range wants integers, not ") + argument.type_name());
    numbers.push_back(*as_integer(argument));
  }
  const int64_t begin = numbers.size() > 1 ? numbers[0] : 0, end = numbers.size() > 1 ? numbers[1] : numbers[0];
  const int64_t step = numbers.size() > 2 ? numbers[2] : 1;
  if (step == 0) raise("range with step 0");
  List out;
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
    if (static_cast<int64_t>(out.size()) == kMaxRange) raise("range of more than " + std::to_string(kMaxRange));
    out.emplace_back(i);
  }
  return out;
}

class Interpreter {
 public:
  Interpreter(const std::string& name, const Dict& variables, const OnIteration& on_iteration)
      : name_(name), on_iteration_(on_iteration), scopes_{variables} {}

  std::string run(const std::vector<Statement>& program) {
    execute(program);
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(int line, const std::string& what) const {
    throw Error(name_ + ": line " + std::to_string(line) + ": " + what);
  }

  void execute(const std::vector<Statement>& body) {
    for (const Statement& statement : body) {
      if (++steps_ > kMaxSteps) fail(statement.line, "the template runs without end");
      try {
        execute(statement);
      } catch (const std::invalid_argument& error) {
        fail(statement.line, error.what());
      }
    }
  }

  void execute(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        out_ += statement.text;
        break;
      case Statement::Kind::kPrint:
        out_ += printed(evaluate(*statement.expression));
        break;
      case Statement::Kind::kIf:
        execute(evaluate(*statement.expression).truthy() ? statement.body : statement.otherwise);
        break;
      case Statement::Kind::kFor:
        execute_for(statement);
        break;
      case Statement::Kind::kGeneration:
        scopes_.emplace_back();
        execute(statement.body);
        scopes_.pop_back();
        break;
      case Statement::Kind::kSet:
        execute_set(statement);
        break;
    }
    if (out_.size() > kMaxLength) raise("the output grows too long");
  }

  void assign(const std::vector<std::string>& targets, const Value& value) {
    if (targets.size() == 1) return scopes_.back().set(targets[0], value);
    const List items = items_of(value);
    if (items.size() != targets.size()) {
      raise(std::to_string(items.size()) + " values for " + std::to_string(targets.size()) + " variables");
    }
    for (size_t i = 0; i < items.size(); ++i) scopes_.back().set(targets[i], items[i]);
  }

  void execute_set(const Statement& statement) {
    const Value value = evaluate(*statement.expression);
    if (statement.attribute.empty()) return assign(statement.targets, value);
    const Value owner = lookup(statement.targets[0]);
    const auto* dict = std::get_if<std::shared_ptr<Dict>>(&owner.held);
    if (!dict || !(*dict)->is_namespace) raise("only attributes of a namespace() can be set");
    (*dict)->set(statement.attribute, value);
  }

  void execute_for(const Statement& statement) {
    List items = items_of(evaluate(*statement.expression));
    if (statement.condition) {
      List kept;
      for (const Value& item : items) {
        scopes_.emplace_back();
        assign(statement.targets, item);
        if (evaluate(*statement.condition).truthy()) kept.push_back(item);
        scopes_.pop_back();
      }
      items = std::move(kept);
    }
    for (size_t i = 0; i < items.size(); ++i) {
      const size_t begin = out_.size();
      scopes_.emplace_back();  // what a turn sets is gone in the next one
      scopes_.back().set("loop", loop_variable(items, i));
      assign(statement.targets, items[i]);
      execute(statement.body);
      scopes_.pop_back();
      on_iteration_(items[i], begin, out_.size());
    }
    if (items.empty()) {
      scopes_.emplace_back();
      execute(statement.otherwise);
      scopes_.pop_back();
    }
  }

  static Value loop_variable(const List& items, size_t i) {
    const int64_t index = static_cast<int64_t>(i), size = static_cast<int64_t>(items.size());
    Dict loop;
    loop.items = {{"index0", index},
                  {"index", index + 1},
                  {"revindex0", size - index - 1},
                  {"revindex", size - index},
                  {"first", i == 0},
                  {"last", i + 1 == items.size()},
                  {"length", size},
                  {"previtem", i > 0 ? items[i - 1] : Value(Undefined{"previtem"})},
                  {"nextitem", i + 1 < items.size() ? items[i + 1] : Value(Undefined{"nextitem"})}};
    return loop;
  }

  Value lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const Value* found = scope->find(name)) return *found;
    }
    return Undefined{name};
  }

  List evaluate_all(const std::vector<ExpressionPtr>& expressions) {
    List out;
    for (const ExpressionPtr& expression : expressions) out.push_back(evaluate(*expression));
    return out;
  }

  Dict evaluate_keywords(const Expression& call) {
    Dict out;
    for (const auto& [keyword, value] : call.keywords) out.set(keyword, evaluate(*value));
    return out;
  }

  Value evaluate(const Expression& e) {
    switch (e.kind) {
      case Node::kLiteral:
        return e.value;
      case Node::kName:
        return lookup(e.name);
      case Node::kList:
        return evaluate_all(e.operands);
      case Node::kDict:
        return evaluate_dict(e);
      case Node::kAttribute:
        return attribute_of(evaluate(*e.operands[0]), e.name);
      case Node::kSubscript:
        return evaluate_subscript(e);
      case Node::kSlice:
        return evaluate_slice(e);
      case Node::kUnary:
        return evaluate_unary(e);
      case Node::kBinary:
        return evaluate_binary(e);
      case Node::kComparison:
        return evaluate_comparison(e);
      case Node::kConditional:
        if (evaluate(*e.operands[1]).truthy()) return evaluate(*e.operands[0]);
        return e.operands[2] ? evaluate(*e.operands[2]) : Value(Undefined{"the else of an if"});
      case Node::kFunction:
        return call_function(e);
      case Node::kMethod:
        return call_method(e);
      case Node::kFilter: {
        const Value value = evaluate(*e.operands[0]);
        return filter(e.name, value, evaluate_all(e.arguments), evaluate_keywords(e));
      }
      case Node::kTest: {
        const Value value = evaluate(*e.operands[0]);
        return test(e.name, value, evaluate_all(e.arguments));
      }
    }
    raise("an expression of unknown kind");
  }

  Value evaluate_dict(const Expression& e) {
    Dict out;
    for (size_t i = 0; i < e.operands.size(); i += 2) {
      const Value key = evaluate(*e.operands[i]);
      if (!key.string()) raise("dict keys other than strings are not supported");
      out.set(*key.string(), evaluate(*e.operands[i + 1]));
    }
    return out;
  }

  Value evaluate_subscript(const Expression& e) {
    const Value value = evaluate(*e.operands[0]);
    return subscript_of(value, evaluate(*e.operands[1]));
  }

  Value evaluate_slice(const Expression& e) {
    const Value value = evaluate(*e.operands[0]);
    std::optional<int64_t> bounds[3];
    for (size_t i = 0; i < 3; ++i) {
      if (!e.operands[i + 1]) continue;
      const Value bound = evaluate(*e.operands[i + 1]);
      bounds[i] = as_integer(bound);
      if (!bounds[i] && !bound.is<None>()) raise(std::string("a slice wants integers, not ") + bound.type_name());
    }
    return slice_of(value, bounds[0], bounds[1], bounds[2]);
  }

  Value evaluate_unary(const Expression& e) {
    const Value value = evaluate(*e.operands[0]);
    if (e.name == "not") return !value.truthy();
    if (!as_integer(value)) raise("\"" + e.name + "\" of " + value.type_name());
    return arithmetic(e.name, 0, *as_integer(value));
  }

  Value evaluate_binary(const Expression& e) {
    Value left = evaluate(*e.operands[0]);
    if (e.name == "and") return left.truthy() ? evaluate(*e.operands[1]) : left;
    if (e.name == "or") return left.truthy() ? left : evaluate(*e.operands[1]);
    return binary(e.name, left, evaluate(*e.operands[1]));
  }

  Value evaluate_comparison(const Expression& e) {
    Value left = evaluate(*e.operands[0]);
    for (size_t i = 0; i < e.names.size(); ++i) {
      Value right = evaluate(*e.operands[i + 1]);
      if (!compare(e.names[i], left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  Value call_function(const Expression& e) {
    const List arguments = evaluate_all(e.arguments);
    if (e.name == "range") return range(arguments);
    if (e.name == "raise_exception") throw Error(name_ + ": " + printed(arguments[0]));
    Dict out = evaluate_keywords(e);  // namespace
    out.is_namespace = true;
    return out;
  }

  Value call_method(const Expression& e) {
    const Value value = evaluate(*e.operands[0]);
    const List arguments = evaluate_all(e.arguments);
    if (const auto* undefined = std::get_if<Undefined>(&value.held)) raise("'" + undefined->name + "' is undefined");
    if (value.string()) return string_method(e.name, *value.string(), arguments);
    if (value.dict() && !value.dict()->is_namespace) return dict_method(e.name, *value.dict(), arguments);
    raise(std::string(value.type_name()) + " has no method " + e.name);
  }

  const std::string& name_;
  const OnIteration& on_iteration_;
  std::vector<Dict> scopes_;
  std::string out_;
  int64_t steps_ = 0;
};

}  // namespace

std::string run(const std::vector<Statement>& program, const std::string& name, const Dict& variables,
                const OnIteration& on_iteration) {
  return Interpreter(name, variables, on_iteration).run(program);
}

}  // namespace espalier::jinja
