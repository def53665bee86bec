// SPDX-License-Identifier: Apache-2.0
// The syntax tree of a chat template. The subset of Jinja: for (with if and else), if/elif/else, set, namespace(),
// generation, expressions with the filters, tests, functions and methods of jinja/built_ins.cpp. All else is
// refused here, by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jinja/built_ins.h"
#include "jinja/value.h"

namespace espalier::jinja {

struct Expression {
  enum class Kind {
    kLiteral,      // value
    kName,         // name
    kList,         // operands
    kDict,         // operands: key, value, key, value, …
    kAttribute,    // operands[0].name
    kSubscript,    // operands[0][operands[1]]
    kSlice,        // operands[0][operands[1]:operands[2]:operands[3]], an absent one is null
    kUnary,        // name: not, -, +
    kBinary,       // name: and, or, +, -, *, //, %, ~
    kComparison,   // operands[0] names[0] operands[1] names[1] operands[2] …
    kConditional,  // operands[0] if operands[1] else operands[2], which may be null
    kFunction,     // name(arguments)
    kMethod,       // operands[0].name(arguments)
    kFilter,       // operands[0] | name(arguments)
    kTest,         // operands[0] is name(arguments)
  };
  Kind kind;
  int line;
  std::string name;
  Value value;
  std::vector<std::unique_ptr<Expression>> operands;
  std::vector<std::unique_ptr<Expression>> arguments;
  std::vector<std::pair<std::string, std::unique_ptr<Expression>>> keywords;
  std::vector<std::string> names;   // the operators of a comparison
  const BuiltIn* callee = nullptr;  // what a function, method, filter or test calls
};
using ExpressionPtr = std::unique_ptr<Expression>;

struct Statement {
  enum class Kind {
    kText,        // text
    kPrint,       // expression
    kIf,          // if expression: body, else: otherwise (an elif is an if in it)
    kFor,         // for targets in expression if condition: body, else: otherwise
    kGeneration,  // body, printed; the tag marks the assistant's words for training
    kSet,         // targets = expression; with an attribute: targets[0].attribute = expression
  };
  Kind kind;
  int line;
  std::string text;
  std::vector<std::string> targets;
  std::string attribute;
  ExpressionPtr expression, condition;
  std::vector<Statement> body, otherwise;
};

// Throws Error "NAME: line N: …" for what is no Jinja, or Jinja that is not supported.
std::vector<Statement> parse(std::string_view source, const std::string& name);

}  // namespace espalier::jinja
