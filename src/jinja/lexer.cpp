// SPDX-License-Identifier: Apache-2.0
#include "jinja/lexer.h"

#include <algorithm>
#include <array>

#include "base/utf8.h"
#include "espalier/error.h"
#include "jinja/value.h"

namespace espalier::jinja {
namespace {

using Kind = Token::Kind;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// One kind of line end, and without the last one: Jinja reads templates so.
std::string normalized(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out += source[i] == '\r' ? '\n' : source[i];
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : source_(normalized(source)), name_(name) {}

  std::vector<Token> run() {
    while (position_ < source_.size()) {
      const size_t tag = next_tag();
      std::string text = source_.substr(position_, tag - position_);
      const bool at_end = tag == source_.size();
      if (!at_end) strip_before(tag, text);
      const int line = line_;
      advance(tag - position_);
      if (!text.empty()) tokens_.push_back({Kind::kText, std::move(text), line});
      if (!at_end) read_tag();
    }
    tokens_.push_back({Kind::kEnd, "the end of the template", line_});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(name_ + ": line " + std::to_string(line_) + ": " + what);
  }
  bool at(std::string_view what) const { return std::string_view(source_).substr(position_).starts_with(what); }
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(position_),
                                         source_.begin() + static_cast<ptrdiff_t>(position_ + count), '\n'));
    position_ += count;
    if (count > 0) line_starting_ = source_[position_ - 1] == '\n';
  }

  size_t next_tag() const {
    for (size_t i = source_.find('{', position_); i != std::string::npos; i = source_.find('{', i + 1)) {
      if (i + 1 < source_.size() && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    }
    return source_.size();
  }

  // The white space in front of a tag: all of it for {%-; back to the begin of the line for {% and {# that begin a
  // line.
  void strip_before(size_t tag, std::string& text) const {
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      text = strip(text, false, true);
    } else if (sign != '+' && source_[tag + 1] != '{') {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string::npos ? 0 : newline + 1;
      if (newline == std::string::npos && !line_starting_) return;
      if (text.find_first_not_of(" \t", line_begin) == std::string::npos) text.resize(line_begin);
    }
  }

  void read_tag() {
    const char opener = source_[position_ + 1];
    advance(2);
    if (opener == '#') return read_comment();
    if (at("-") || at("+")) advance(1);
    const bool block = opener == '%';
    tokens_.push_back({block ? Kind::kBlockBegin : Kind::kPrintBegin, block ? "{%" : "{{", line_});
    const std::string_view closer = block ? "%}" : "}}";
    std::string open;  // brackets, so that the }} of a dict of dicts ends no tag
    while (true) {
      while (position_ < source_.size() &&
             std::string_view(" \t\n\f\v").find(source_[position_]) != std::string_view::npos)
        advance(1);
      if (position_ == source_.size()) fail("a tag is not closed");
      if (open.empty() && (at(closer) || at("-" + std::string(closer)) || (block && at("+" + std::string(closer))))) {
        tokens_.push_back({block ? Kind::kBlockEnd : Kind::kPrintEnd, std::string(closer), line_});
        return close_tag(closer.size(), block);
      }
      read_word(open);
    }
  }

  void read_comment() {
    const size_t end = source_.find("#}", position_);
    if (end == std::string::npos) fail("a comment is not closed");
    const char sign = end > position_ ? source_[end - 1] : '\0';
    advance(end - position_ - (sign == '-' || sign == '+' ? 1 : 0));
    close_tag(2, true);
  }

  // At the closer of a tag, its sign included: moves behind it and the white space that it takes with it.
  void close_tag(size_t closer_size, bool trim_newline) {
    const char sign = source_[position_];
    advance(closer_size + (sign == '-' || sign == '+' ? 1 : 0));
    if (sign == '-') {
      const std::string_view rest = std::string_view(source_).substr(position_);
      advance(rest.size() - strip(rest, true, false).size());
    } else if (sign != '+' && trim_newline && at("\n")) {
      advance(1);
    }
  }

  void read_word(std::string& open) {
    const char c = source_[position_];
    if (c == '"' || c == '\'') return read_string(c);
    if (is_name_start(c) || is_digit(c)) return read_name_or_number();
    static constexpr std::array kOperators = {"**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
                                              ">",  "=",  ".",  ",",  ":",  "|",  ";", "(", ")", "[", "]", "{", "}"};
    const auto found = std::find_if(kOperators.begin(), kOperators.end(), [&](const char* op) { return at(op); });
    if (found == kOperators.end()) fail("unexpected character '" + std::string(1, c) + "'");
    const std::string op = *found;
    if (op == "(" || op == "[" || op == "{") open += op;
    if (op == ")" || op == "]" || op == "}") {
      const char partner = op == ")" ? '(' : op == "]" ? '[' : '{';
      if (open.empty() || open.back() != partner) fail("unexpected '" + op + "'");
      open.pop_back();
    }
    tokens_.push_back({Kind::kOperator, op, line_});
    advance(op.size());
  }

  void read_name_or_number() {
    size_t end = position_;
    while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
    std::string text = source_.substr(position_, end - position_);
    const bool number = is_digit(text[0]);
    const bool fraction = end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1]);
    if (number && (fraction || !std::all_of(text.begin(), text.end(), is_digit)))
      fail("numbers other than integers are not supported");
    if (number && text.size() > 18) fail("the number " + text + " is too large");
    tokens_.push_back({number ? Kind::kInteger : Kind::kName, std::move(text), line_});
    advance(end - position_);
  }

  void read_string(char quote) {
    const int line = line_;
    std::string text;
    advance(1);
    while (position_ < source_.size() && source_[position_] != quote) {
      if (source_[position_] == '\\' && position_ + 1 < source_.size()) {
        advance(1);
        read_escape(text);
      } else {
        text += source_[position_];
        advance(1);
      }
    }
    if (position_ == source_.size()) fail("a string is not closed");
    advance(1);
    tokens_.push_back({Kind::kString, std::move(text), line});
  }

  // Python's escapes; an unknown one stays as it is, with its backslash.
  void read_escape(std::string& out) {
    const char c = source_[position_];
    static constexpr std::string_view kLetters = "\\'\"abfnrtv", kMeanings = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t i = kLetters.find(c); i != std::string_view::npos) {
      out += kMeanings[i];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      return read_hex(c == 'x' ? 2 : c == 'u' ? 4 : 8, out);
    } else if (is_digit(c) || c == 'N') {
      fail(std::string("the escape \\") + c + " is not supported");
    } else if (c != '\n') {
      out += '\\';
      out += c;
    }
    advance(1);
  }

  void read_hex(size_t digits, std::string& out) {
    const std::string hex = source_.substr(position_ + 1, digits);
    const bool good = hex.size() == digits && hex.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
    const char32_t code = good ? static_cast<char32_t>(std::stoul(hex, nullptr, 16)) : 0x110000;
    if (code >= 0x110000 || (code >= 0xD800 && code < 0xE000))
      fail("bad escape \\" + std::string(1, source_[position_]) + hex);
    append_utf8(code, out);
    advance(1 + digits);
  }

  const std::string source_;
  const std::string& name_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // what was read last ended a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& name) {
  return Lexer(source, name).run();
}

}  // namespace espalier::jinja
