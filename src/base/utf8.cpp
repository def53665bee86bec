// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

namespace espalier {
namespace {

struct Lead {
  uint8_t length;           // of the whole character, 0 for a byte that cannot begin one
  uint8_t lowest, highest;  // what the second byte may be: this excludes overlong forms, surrogates, > U+10FFFF
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Character utf8_at(std::string_view text, size_t position) {
  using Kind = Utf8Character::Kind;
  const uint8_t first = static_cast<uint8_t>(text[position]);
  const Lead lead = lead_of(first);
  if (lead.length == 0) return {Kind::kInvalid, 0, 1};
  if (lead.length == 1) return {Kind::kValid, first, 1};
  char32_t code = first & (0x7F >> lead.length);
  for (uint8_t i = 1; i < lead.length; ++i) {
    if (position + i == text.size()) return {Kind::kTruncated, 0, i};
    const uint8_t byte = static_cast<uint8_t>(text[position + i]);
    const bool good = i == 1 ? byte >= lead.lowest && byte <= lead.highest : (byte & 0xC0) == 0x80;
    if (!good) return {Kind::kInvalid, 0, i};
    code = code << 6 | (byte & 0x3F);
  }
  return {Kind::kValid, code, lead.length};
}

size_t first_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Character character = utf8_at(text, i);
    if (character.kind != Utf8Character::Kind::kValid) return i;
    i += character.length;
  }
  return std::string_view::npos;
}

void append_utf8(char32_t code, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    tail(6), tail(0);
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    tail(12), tail(6), tail(0);
  }
}

void drain_utf8(std::string& bytes, bool final, std::string& out) {
  size_t i = 0;
  while (i < bytes.size()) {
    const Utf8Character character = utf8_at(bytes, i);
    if (character.kind == Utf8Character::Kind::kTruncated && !final) break;
    if (character.kind == Utf8Character::Kind::kValid) {
      out.append(bytes, i, character.length);
    } else {
      out += kReplacementCharacter;
    }
    i += character.length;
  }
  bytes.erase(0, i);
}

}  // namespace espalier
