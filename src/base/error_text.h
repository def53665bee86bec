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

}  // namespace espalier
