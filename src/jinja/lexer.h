// SPDX-License-Identifier: Apache-2.0
// A chat template cut into text, tags and the words inside of tags, white-space control applied as Jinja does with
// trim_blocks and lstrip_blocks on.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace espalier::jinja {

struct Token {
  enum class Kind { kText, kBlockBegin, kBlockEnd, kPrintBegin, kPrintEnd, kName, kInteger, kString, kOperator, kEnd };
  Kind kind;
  std::string text;  // strings without their quotes, escapes resolved
  int line;
};

// Throws Error "NAME: line N: …".
std::vector<Token> tokenize(std::string_view source, const std::string& name);

}  // namespace espalier::jinja
