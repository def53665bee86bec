// SPDX-License-Identifier: Apache-2.0
#include "base/error_text.h"

#include <cstdint>

#include "base/limits.h"
#include "base/utf8.h"
#include "espalier/error.h"

namespace espalier {
namespace {

// C0, DEL, C1, the line and paragraph separators, and what turns the direction of text around.
bool is_control(char32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029 ||
         (code >= 0x202A && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
}

void append_escaped(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) {
    char text[8];
    if (byte == '\n' || byte == '\t' || byte == '\r') {
      out += byte == '\n' ? "\\n" : byte == '\t' ? "\\t" : "\\r";
    } else {
      std::snprintf(text, sizeof text, "\\x%02X", static_cast<unsigned>(static_cast<uint8_t>(byte)));
      out += text;
    }
  }
}

// Up to `most` characters of the text; what comes back is where that ended.
size_t append_characters(std::string_view text, size_t most, std::string& out) {
  size_t i = 0;
  for (size_t count = 0; i < text.size() && count < most; ++count) {
    const Utf8Character character = utf8_at(text, i);
    const std::string_view bytes = text.substr(i, character.length);
    if (character.kind == Utf8Character::Kind::kValid && !is_control(character.code)) {
      out += bytes;
    } else {
      append_escaped(bytes, out);
    }
    i += bytes.size();
  }
  return i;
}

}  // namespace

std::string shown(std::string_view value) {
  std::string out;
  if (append_characters(value, limits::kShownCharacters, out) < value.size()) out += "…";
  return out;
}

std::string in_quotes(std::string_view value) {
  return '"' + shown(value) + '"';
}

std::string one_line(std::string_view text) {
  std::string out;
  append_characters(text, text.size(), out);
  return out;
}

namespace {

// Who names file and field names them first, and what came last.
std::string message_of(const std::string& text) {
  if (text.size() <= limits::kMessageBytes) return one_line(text);
  constexpr size_t kHalf = limits::kMessageBytes / 2;
  return one_line(text.substr(0, kHalf)) + " … " + one_line(text.substr(text.size() - kHalf));
}

}  // namespace

Error::Error(const std::string& message) : std::runtime_error(message_of(message)) {}

}  // namespace espalier
