// SPDX-License-Identifier: Apache-2.0
// The kinds of characters that added tokens ask about beside them, with the meaning of Rust's regular expressions.
#pragma once

#include <cstddef>
#include <string_view>

namespace espalier {

bool ends_in_word(std::string_view text);      // \w$
bool begins_with_word(std::string_view text);  // ^\w
// Bytes of white space (\s) at the end and at the beginning of the text.
size_t white_space_at_end(std::string_view text);
size_t white_space_at_begin(std::string_view text);

}  // namespace espalier
