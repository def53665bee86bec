// SPDX-License-Identifier: Apache-2.0
// UTF-8 as the tokenizer needs it: where characters end, which bytes are none, and what stands for those. No Unicode
// properties here (utf8proc has them).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace espalier {

struct Utf8Character {
  enum class Kind { kValid, kInvalid, kTruncated };  // truncated: a good beginning, cut off by the end of the text
  Kind kind;
  char32_t code;   // only if valid
  uint8_t length;  // of an invalid sequence: as much of it as one U+FFFD stands for (its "maximal subpart")
};

// The character at `position`, which must be inside of `text`.
Utf8Character utf8_at(std::string_view text, size_t position);

// Offset of the first byte that is not UTF-8, or npos.
size_t first_invalid_utf8(std::string_view text);

void append_utf8(char32_t code, std::string& out);

// Moves `bytes` to the end of `out`, U+FFFD for each invalid sequence. A truncated character at the end stays in
// `bytes`, unless `final`: then it is invalid.
void drain_utf8(std::string& bytes, bool final, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace espalier
