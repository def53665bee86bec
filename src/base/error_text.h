// SPDX-License-Identifier: Apache-2.0
// The words of a message, put together: throw Error(text_of(file, ": expected ", n, " rows, got ", list_text(shape))).
#pragma once

#include <concepts>
#include <cstdio>
#include <ranges>
#include <string>
#include <string_view>

namespace espalier {
namespace detail {

inline void append_text(std::string& out, std::string_view text) {
  out += text;
}
inline void append_text(std::string& out, char character) {
  out += character;
}
template <std::integral Number>
void append_text(std::string& out, Number number) {
  out += std::to_string(number);
}
inline void append_text(std::string& out, double number) {  // as %g prints it: 0.25, 1e-06
  char text[32];
  out.append(text, static_cast<size_t>(std::snprintf(text, sizeof text, "%g", number)));
}

}  // namespace detail

template <typename... Parts>
std::string text_of(const Parts&... parts) {
  std::string out;
  (detail::append_text(out, parts), ...);
  return out;
}

// "[2, 3, 4]" of the sizes of a tensor, or of any numbers or words.
template <std::ranges::range Items>
std::string list_text(const Items& items) {
  std::string out;
  for (const auto& item : items) {
    if (!out.empty()) out += ", ";
    detail::append_text(out, item);
  }
  return "[" + out + "]";
}

// A name or value from a file or a caller as messages show it: control characters and bytes that are not UTF-8 as
// \n or \x1B, and what is longer than limits::kShownCharacters cut with "…". `in_quotes` puts it between quotation
// marks.
std::string shown(std::string_view value);
std::string in_quotes(std::string_view value);

// The text with control characters and foreign bytes escaped likewise, whole: of messages that are put together.
std::string one_line(std::string_view text);

}  // namespace espalier
