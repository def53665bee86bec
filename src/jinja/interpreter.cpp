// SPDX-License-Identifier: Apache-2.0
#include "jinja/interpreter.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "base/error_text.h"
#include "base/limits.h"
#include "espalier/error.h"
#include "jinja/operations.h"

namespace espalier::jinja {
namespace {

using Node = Expression::Kind;

class Interpreter {
 public:
  Interpreter(const std::string& name, const Dict& variables, const OnIteration& on_iteration)
      : name_(name), on_iteration_(on_iteration), scopes_{variables} {}

  std::string run(const std::vector<Statement>& program) {
    try {
      execute(program);
    } catch (const RaisedByTemplate& raised) {
      throw Error(name_ + ": " + raised.words);
    }
    return std::move(out_);
  }

  // Namespaces may hold one another, themselves included: emptied one by one, they go without a long chain of
  // destructors, and none is left behind.
  ~Interpreter() {
    for (const auto& dict : namespaces_) dict->items.clear();
  }
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

 private:
  [[noreturn]] void fail(int line, const std::string& what) const {
    throw Error(name_ + ": line " + std::to_string(line) + ": " + what);
  }

  void execute(const std::vector<Statement>& body) {
    for (const Statement& statement : body) {
      try {
        budget_.spend(1);
        execute(statement);
      } catch (const std::invalid_argument& error) {
        fail(statement.line, error.what());
      }
    }
  }

  void execute(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        print(statement.text);
        break;
      case Statement::Kind::kPrint:
        print(printed(evaluate(*statement.expression)));
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
  }

  void print(std::string_view text) {
    if (out_.size() + text.size() > limits::kTemplateText)
      raise(text_of("an output of more than ", limits::kTemplateText, " bytes"));
    budget_.spend_text(text.size());
    out_ += text;
  }

  void assign(const std::vector<std::string>& targets, const Value& value) {
    if (targets.size() == 1) return scopes_.back().set(targets[0], value);
    const List items = items_of(value, budget_);
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
    List items = items_of(evaluate(*statement.expression), budget_);
    if (statement.condition) {
      List kept;
      for (const Value& item : items) {
        budget_.spend(item);
        scopes_.emplace_back();
        assign(statement.targets, item);
        if (evaluate(*statement.condition).truthy()) kept.push_back(item);
        scopes_.pop_back();
      }
      items = std::move(kept);
    }
    for (size_t i = 0; i < items.size(); ++i) {
      const size_t begin = out_.size();
      for (const size_t copied : {i ? i - 1 : i, i, std::min(i + 1, items.size() - 1)}) budget_.spend(items[copied]);
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

  Value lookup(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      budget_.spend(scope->items.size() / 8);
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

  // A value that is handed on is a copy of its text.
  Value evaluate(const Expression& e) {
    Value value = compute(e);
    budget_.spend(value);
    return value;
  }

  Value compute(const Expression& e) {
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
        return attribute_of(evaluate(*e.operands[0]), e.name, budget_);
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
        return call(e, Undefined{});
      case Node::kMethod:
      case Node::kFilter:
      case Node::kTest:
        return call(e, evaluate(*e.operands[0]));
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
    return subscript_of(value, evaluate(*e.operands[1]), budget_);
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
    return slice_of(value, bounds[0], bounds[1], bounds[2], budget_);
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
    return binary(e.name, left, evaluate(*e.operands[1]), budget_);
  }

  Value evaluate_comparison(const Expression& e) {
    Value left = evaluate(*e.operands[0]);
    for (size_t i = 0; i < e.names.size(); ++i) {
      Value right = evaluate(*e.operands[i + 1]);
      if (!compare(e.names[i], left, right, budget_)) return false;
      left = std::move(right);
    }
    return true;
  }

  Value call(const Expression& e, const Value& value) {
    const List arguments = evaluate_all(e.arguments);
    Value made = e.callee->run({e.callee->name, value, arguments, evaluate_keywords(e), budget_});
    const auto* dict = std::get_if<std::shared_ptr<Dict>>(&made.held);
    if (e.kind == Node::kFunction && dict && (*dict)->is_namespace) namespaces_.push_back(*dict);
    return made;
  }

  const std::string& name_;
  const OnIteration& on_iteration_;
  std::vector<Dict> scopes_;
  std::vector<std::shared_ptr<Dict>> namespaces_;  // all that were made
  std::string out_;
  Budget budget_;
};

}  // namespace

std::string run(const std::vector<Statement>& program, const std::string& name, const Dict& variables,
                const OnIteration& on_iteration) {
  return Interpreter(name, variables, on_iteration).run(program);
}

}  // namespace espalier::jinja
