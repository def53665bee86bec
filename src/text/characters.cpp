// SPDX-License-Identifier: Apache-2.0
#include "text/characters.h"

#include <utf8proc.h>

#include "base/utf8.h"

namespace espalier {
namespace {

bool is_white_space(char32_t code) {  // Unicode's White_Space
  return (code >= 0x9 && code <= 0xD) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

bool is_word(char32_t code) {
  const bool joins = code == 0x200C || code == 0x200D;
  // Letters in circles and squares are symbols by their category and alphabetic all the same.
  const bool enclosed = (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
                        (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
  if (joins || enclosed) return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

// The last character of valid UTF-8 that is not empty.
Utf8Character last_of(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return utf8_at(text, begin);
}

}  // namespace

bool ends_in_word(std::string_view text) {
  return !text.empty() && is_word(last_of(text).code);
}

bool begins_with_word(std::string_view text) {
  return !text.empty() && is_word(utf8_at(text, 0).code);
}

size_t white_space_at_end(std::string_view text) {
  const size_t size = text.size();
  while (!text.empty()) {
    const Utf8Character last = last_of(text);
    if (!is_white_space(last.code)) break;
    text.remove_suffix(last.length);
  }
  return size - text.size();
}

size_t white_space_at_begin(std::string_view text) {
  size_t end = 0;
  while (end < text.size()) {
    const Utf8Character next = utf8_at(text, end);
    if (!is_white_space(next.code)) break;
    end += next.length;
  }
  return end;
}

}  // namespace espalier
