// SPDX-License-Identifier: Apache-2.0
#include "jinja/parser.h"

#include <algorithm>
#include <initializer_list>

#include "base/error_text.h"
#include "base/limits.h"
#include "espalier/error.h"
#include "jinja/lexer.h"

namespace espalier::jinja {
namespace {

using Kind = Token::Kind;
using Node = Expression::Kind;

class Parser {
 public:
  Parser(std::string_view source, const std::string& name) : name_(name), tokens_(tokenize(source, name)) {}

  std::vector<Statement> run() { return parse_body({}); }

 private:
  const Token& token() const { return tokens_[position_]; }
  Token take() { return tokens_[token().kind == Kind::kEnd ? position_ : position_++]; }
  bool at(Kind kind, std::string_view text) const { return token().kind == kind && token().text == text; }
  bool at_operator(std::string_view text) const { return at(Kind::kOperator, text); }
  bool at_name(std::string_view text) const { return at(Kind::kName, text); }
  bool accept(Kind kind, std::string_view text) { return at(kind, text) && (++position_, true); }
  bool accept_operator(std::string_view text) { return accept(Kind::kOperator, text); }
  bool accept_name(std::string_view text) { return accept(Kind::kName, text); }
  void expect_operator(const std::string& text) {
    if (!accept_operator(text)) unexpected("\"" + text + "\"");
  }
  std::string take_name(const std::string& what) {
    if (token().kind != Kind::kName) unexpected(what);
    return take().text;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(name_ + ": line " + std::to_string(token().line) + ": " + what);
  }
  [[noreturn]] void unexpected(const std::string& expected) const {
    fail("expected " + expected + ", got " + in_quotes(token().text));
  }

  class Depth {
   public:
    explicit Depth(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > limits::kTemplateDepth)
        parser_.fail(text_of("nested more than ", limits::kTemplateDepth, " deep"));
    }
    ~Depth() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  ExpressionPtr make(Node kind, std::string name = "") {
    if (++operands_ > limits::kTemplateOperands)
      fail(text_of("a tag of more than ", limits::kTemplateOperands, " operands"));
    auto out = std::make_unique<Expression>();
    out->kind = kind;
    out->line = token().line;
    out->name = std::move(name);
    return out;
  }

  // --- statements
  // -------------------------------------------------------------------------------------------------------

  // Up to one of the block tags `ends`, which stays; to the end of the template where there are none.
  std::vector<Statement> parse_body(std::initializer_list<std::string_view> ends) {
    const Depth depth(*this);
    std::vector<Statement> body;
    while (token().kind != Kind::kEnd) {
      operands_ = 0;
      if (token().kind == Kind::kText) {
        body.push_back({Statement::Kind::kText, token().line, take().text, {}, {}, {}, {}, {}, {}});
      } else if (token().kind == Kind::kPrintBegin) {
        const int line = take().line;
        body.push_back({Statement::Kind::kPrint, line, {}, {}, {}, parse_expression(), {}, {}, {}});
        if (take().kind != Kind::kPrintEnd) --position_, unexpected("\"}}\"");
      } else {
        const std::string& tag = tokens_[position_ + 1].text;
        if (std::find(ends.begin(), ends.end(), tag) != ends.end()) return body;
        body.push_back(parse_tag());
      }
    }
    if (ends.size() > 0) unexpected("{% " + std::string(*(ends.end() - 1)) + " %}");
    return body;
  }

  void expect_block_end() {
    if (token().kind != Kind::kBlockEnd) unexpected("\"%}\"");
    take();
  }
  // {% NAME %}, of which parse_body has left the whole.
  std::string take_closing_tag() {
    take();
    const std::string tag = take().text;
    if (tag != "elif") expect_block_end();
    return tag;
  }

  Statement parse_tag() {
    take();
    const std::string tag = take_name("a tag");
    if (tag == "for") return parse_for();
    if (tag == "if") return parse_if();
    if (tag == "set") return parse_set();
    if (tag == "generation") return parse_generation();
    --position_;
    fail("the tag {% " + shown(tag) + " %} is not supported");
  }

  Statement parse_if() {
    Statement out{Statement::Kind::kIf, token().line, {}, {}, {}, parse_expression(), {}, {}, {}};
    expect_block_end();
    out.body = parse_body({"elif", "else", "endif"});
    const std::string tag = take_closing_tag();
    if (tag == "elif") {
      const Depth depth(*this);
      out.otherwise.push_back(parse_if());
    } else if (tag == "else") {
      out.otherwise = parse_body({"endif"});
      take_closing_tag();
    }
    return out;
  }

  std::vector<std::string> parse_targets() {
    std::vector<std::string> targets;
    const bool parenthesised = accept_operator("(");
    do {
      targets.push_back(take_name("a variable"));
    } while (accept_operator(","));
    if (parenthesised) expect_operator(")");
    return targets;
  }

  Statement parse_for() {
    Statement out{Statement::Kind::kFor, token().line, {}, parse_targets(), {}, {}, {}, {}, {}};
    if (!accept_name("in")) unexpected("\"in\"");
    out.expression = parse_or();  // no `… if … else …` here: the if is the loop's own
    if (accept_name("if")) out.condition = parse_expression();
    if (at_name("recursive")) fail("a recursive for is not supported");
    expect_block_end();
    out.body = parse_body({"else", "endfor"});
    if (take_closing_tag() == "else") {
      out.otherwise = parse_body({"endfor"});
      take_closing_tag();
    }
    return out;
  }

  Statement parse_generation() {
    Statement out{Statement::Kind::kGeneration, token().line, {}, {}, {}, {}, {}, {}, {}};
    expect_block_end();
    out.body = parse_body({"endgeneration"});
    take_closing_tag();
    return out;
  }

  Statement parse_set() {
    Statement out{Statement::Kind::kSet, token().line, {}, parse_targets(), {}, {}, {}, {}, {}};
    if (out.targets.size() == 1 && accept_operator(".")) out.attribute = take_name("an attribute");
    if (token().kind == Kind::kBlockEnd || at_operator("|")) fail("{% set %} with a body is not supported");
    expect_operator("=");
    out.expression = parse_expression();
    if (at_operator(",")) fail("a tuple without parentheses is not supported");
    expect_block_end();
    return out;
  }

  // --- expressions, loosest first
  // ---------------------------------------------------------------------------------------

  ExpressionPtr parse_expression() {
    const Depth depth(*this);
    ExpressionPtr value = parse_or();
    while (at_name("if")) {
      ExpressionPtr out = make(Node::kConditional);
      take();
      out->operands.push_back(std::move(value));
      out->operands.push_back(parse_or());
      out->operands.push_back(accept_name("else") ? parse_expression() : nullptr);
      value = std::move(out);
    }
    return value;
  }

  ExpressionPtr binary(std::string op, ExpressionPtr left, ExpressionPtr right) {
    ExpressionPtr out = make(Node::kBinary, std::move(op));
    out->operands.push_back(std::move(left));
    out->operands.push_back(std::move(right));
    return out;
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (accept_name("or")) left = binary("or", std::move(left), parse_and());
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (accept_name("and")) left = binary("and", std::move(left), parse_not());
    return left;
  }

  ExpressionPtr parse_not() {
    if (!at_name("not")) return parse_comparison();
    const Depth depth(*this);
    ExpressionPtr out = make(Node::kUnary, take().text);
    out->operands.push_back(parse_not());
    return out;
  }

  // The comparison operator here, taken; empty when there is none.
  std::string accept_comparison() {
    for (const char* op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (accept_operator(op)) return op;
    }
    if (accept_name("in")) return "in";
    const Token& next = tokens_[std::min(position_ + 1, tokens_.size() - 1)];
    if (at_name("not") && next.kind == Kind::kName && next.text == "in") {
      position_ += 2;
      return "not in";
    }
    return "";
  }

  ExpressionPtr parse_comparison() {
    ExpressionPtr left = parse_sum();
    std::string op = accept_comparison();
    if (op.empty()) return left;
    ExpressionPtr out = make(Node::kComparison);
    out->operands.push_back(std::move(left));
    for (; !op.empty(); op = accept_comparison()) {
      out->names.push_back(op);
      out->operands.push_back(parse_sum());
    }
    return out;
  }

  ExpressionPtr parse_sum() {
    ExpressionPtr left = parse_concatenation();
    while (at_operator("+") || at_operator("-")) {
      const std::string op = take().text;
      left = binary(op, std::move(left), parse_concatenation());
    }
    return left;
  }

  ExpressionPtr parse_concatenation() {
    ExpressionPtr left = parse_product();
    while (accept_operator("~")) left = binary("~", std::move(left), parse_product());
    return left;
  }

  ExpressionPtr parse_product() {
    ExpressionPtr left = parse_unary(true);
    while (at_operator("*") || at_operator("//") || at_operator("%")) {
      const std::string op = take().text;
      left = binary(op, std::move(left), parse_unary(true));
    }
    if (at_operator("/") || at_operator("**")) fail("the operator " + token().text + " is not supported");
    return left;
  }

  ExpressionPtr parse_unary(bool with_filters) {
    ExpressionPtr out;
    if (at_operator("-") || at_operator("+")) {
      const Depth depth(*this);
      out = make(Node::kUnary, take().text);
      out->operands.push_back(parse_unary(false));
    } else {
      out = parse_primary();
    }
    out = parse_postfix(std::move(out));
    return with_filters ? parse_filters(std::move(out)) : std::move(out);
  }

  ExpressionPtr literal(Value value) {
    ExpressionPtr out = make(Node::kLiteral);
    out->value = std::move(value);
    return out;
  }

  ExpressionPtr parse_primary() {
    if (token().kind == Kind::kInteger) return literal(Value(static_cast<int64_t>(std::stoll(take().text))));
    if (token().kind == Kind::kString) {
      std::string text;
      while (token().kind == Kind::kString) text += take().text;  // neighbours are one string, as in Python
      return literal(Value(std::move(text)));
    }
    if (at_operator("(")) return parse_parentheses();
    if (at_operator("[")) {
      ExpressionPtr out = make(Node::kList);
      parse_items("[", "]", [&] { out->operands.push_back(parse_expression()); });
      return out;
    }
    if (at_operator("{")) return parse_dict();
    if (token().kind != Kind::kName) unexpected("an expression");
    const std::string name = token().text;
    for (const char* keyword : {"and", "or", "in", "is", "if", "else"}) {
      if (name == keyword) unexpected("an expression");
    }
    if (name == "true" || name == "True") return ++position_, literal(Value(true));
    if (name == "false" || name == "False") return ++position_, literal(Value(false));
    if (name == "none" || name == "None") return ++position_, literal(Value(None{}));
    ExpressionPtr out = make(Node::kName, name);
    ++position_;
    return out;
  }

  template <typename ParseItem>
  void parse_items(const std::string& open, const std::string& close, ParseItem parse_item) {
    expect_operator(open);
    while (!accept_operator(close)) {
      parse_item();
      if (!at_operator(close)) expect_operator(",");
    }
  }

  // (a), or a tuple, which is a list here: what a template does with either is the same.
  ExpressionPtr parse_parentheses() {
    ExpressionPtr tuple = make(Node::kList);
    bool comma = false;
    expect_operator("(");
    while (!accept_operator(")")) {
      tuple->operands.push_back(parse_expression());
      if (at_operator(")")) continue;
      expect_operator(",");
      comma = true;
    }
    if (tuple->operands.size() == 1 && !comma) return std::move(tuple->operands[0]);
    return tuple;
  }

  ExpressionPtr parse_dict() {
    ExpressionPtr out = make(Node::kDict);
    parse_items("{", "}", [&] {
      out->operands.push_back(parse_expression());
      expect_operator(":");
      out->operands.push_back(parse_expression());
    });
    return out;
  }

  ExpressionPtr parse_postfix(ExpressionPtr value) {
    while (true) {
      if (accept_operator(".")) {
        ExpressionPtr out = make(Node::kAttribute, take_name("an attribute"));
        out->operands.push_back(std::move(value));
        value = std::move(out);
      } else if (at_operator("[")) {
        value = parse_subscript(std::move(value));
      } else if (at_operator("(")) {
        value = parse_call(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_subscript(ExpressionPtr value) {
    ExpressionPtr out = make(Node::kSubscript);
    expect_operator("[");
    out->operands.push_back(std::move(value));
    const auto bound = [&] { return at_operator(":") || at_operator("]") ? nullptr : parse_expression(); };
    out->operands.push_back(bound());
    while (accept_operator(":")) {
      out->kind = Node::kSlice;
      out->operands.push_back(bound());
    }
    if (out->kind == Node::kSubscript && !out->operands[1]) unexpected("an index");
    if (out->operands.size() > 4) fail("a slice has at most three parts");
    out->operands.resize(out->kind == Node::kSlice ? 4 : 2);
    expect_operator("]");
    return out;
  }

  ExpressionPtr parse_call(ExpressionPtr callee) {
    const bool method = callee->kind == Node::kAttribute;
    if (!method && callee->kind != Node::kName) fail("calling an expression is not supported");
    callee->kind = method ? Node::kMethod : Node::kFunction;
    parse_arguments(*callee);
    callee->callee = method ? check("method ", *callee, find_method(callee->name))
                            : check("function ", *callee, find_function(callee->name));
    return callee;
  }

  void parse_arguments(Expression& call) {
    parse_items("(", ")", [&] {
      const Token& next = tokens_[std::min(position_ + 1, tokens_.size() - 1)];
      if (at_operator("*")) fail("* in a call is not supported");
      if (token().kind == Kind::kName && next.kind == Kind::kOperator && next.text == "=") {
        std::string keyword = take().text;
        take();
        call.keywords.emplace_back(std::move(keyword), parse_expression());
      } else {
        if (!call.keywords.empty()) fail("a positional argument after a keyword");
        call.arguments.push_back(parse_expression());
      }
    });
  }

  // Fails unless `found` is there and takes the arguments of the call. `what`: "filter " and the like.
  const BuiltIn* check(const std::string& what, const Expression& call, const BuiltIn* found) const {
    if (!found) fail("the " + what + shown(call.name) + " is not supported");
    if (call.arguments.size() < found->least || call.arguments.size() > found->most) {
      fail("the " + what + call.name + " with " + std::to_string(call.arguments.size()) +
           " arguments is not supported");
    }
    for (const auto& [keyword, value] : call.keywords) {
      if (found->keyword != "*" && found->keyword != keyword)
        fail("the " + what + call.name + " with " + shown(keyword) + "= is not supported");
    }
    return found;
  }

  ExpressionPtr parse_filters(ExpressionPtr value) {
    while (true) {
      if (accept_operator("|")) {
        ExpressionPtr out = make(Node::kFilter, take_name("a filter"));
        out->operands.push_back(std::move(value));
        if (at_operator("(")) parse_arguments(*out);
        out->callee = check("filter ", *out, find_filter(out->name));
        check_named_test(*out);
        value = std::move(out);
      } else if (accept_name("is")) {
        value = parse_test(std::move(value));
      } else if (at_operator("(")) {
        fail("calling an expression is not supported");
      } else {
        return value;
      }
    }
  }

  // selectattr and rejectattr name a test in their second argument, "equalto" or "==".
  void check_named_test(Expression& filter) const {
    if (!filter.name.ends_with("attr") || filter.arguments.size() < 2) return;
    const Expression& argument = *filter.arguments[1];
    if (argument.kind != Node::kLiteral || !argument.value.string())
      fail("the filter " + filter.name + " needs the name of a test");
    Expression test{};
    test.name = *argument.value.string() == "==" ? "equalto" : *argument.value.string();
    test.arguments.resize(filter.arguments.size() - 2);
    check("test ", test, find_test(test.name));
    filter.arguments[1]->value = Value(test.name);
  }

  // `is NAME`, `is NAME(argument)`, `is NAME argument`
  ExpressionPtr parse_test(ExpressionPtr value) {
    const bool negated = accept_name("not");
    ExpressionPtr out = make(Node::kTest, take_name("a test"));
    out->operands.push_back(std::move(value));
    const bool keyword = at_name("else") || at_name("or") || at_name("and") || at_name("is") || at_name("if") ||
                         at_name("in") || at_name("not");
    const bool operand = token().kind == Kind::kName || token().kind == Kind::kString ||
                         token().kind == Kind::kInteger || at_operator("[") || at_operator("{");
    if (at_operator("(")) {
      parse_arguments(*out);
    } else if (operand && !keyword) {
      out->arguments.push_back(parse_postfix(parse_primary()));
    }
    out->callee = check("test ", *out, find_test(out->name));
    if (!negated) return out;
    ExpressionPtr negation = make(Node::kUnary, "not");
    negation->operands.push_back(std::move(out));
    return negation;
  }

  const std::string& name_;
  std::vector<Token> tokens_;
  size_t position_ = 0;
  int depth_ = 0;
  int operands_ = 0;  // of the tag that is being read
};

}  // namespace

std::vector<Statement> parse(std::string_view source, const std::string& name) {
  if (source.size() > limits::kTemplateBytes)
    throw Error(text_of(name, ": ", source.size(), " bytes, a template has at most ", limits::kTemplateBytes));
  return Parser(source, name).run();
}

}  // namespace espalier::jinja
