// SPDX-License-Identifier: Apache-2.0
// A piece of text on its way through the tokenizer that remembers, byte by byte, where in the user's text it came from.
// The steps that change text (normalizer, Metaspace) change it through this. What would make it longer than `most`
// bytes throws Error before it is made.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

struct AlignedText {
  std::string text;
  std::vector<size_t> ends;  // [text.size()] offset in the original behind what this byte and those before it stand for
  size_t begin = 0;          // offset in the original where the piece begins

  static AlignedText of(std::string_view original, size_t begin, size_t end);
  AlignedText slice(size_t first, size_t last) const;

  void prepend(std::string_view what, size_t most);
  void replace_all(std::string_view from, std::string_view to, size_t most);  // `from` is not empty
  void append(std::string_view bytes, size_t from, size_t to);    // `bytes` stand for the original's [from, to)
  void append(const AlignedText& of, size_t first, size_t last);  // the bytes [first, last) of another
  size_t begin_of(size_t position) const { return position == 0 ? begin : ends[position - 1]; }  // in the original
};

}  // namespace espalier
