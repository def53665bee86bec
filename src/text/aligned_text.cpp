// SPDX-License-Identifier: Apache-2.0
#include "text/aligned_text.h"

#include <numeric>

#include "base/error_text.h"
#include "espalier/error.h"

namespace espalier {

namespace {

void check_size(size_t bytes, size_t most) {
  if (bytes > most)
    throw Error(text_of("the tokenizer's normalizer makes a text of ", bytes, " bytes, at most ", most, " are taken"));
}

}  // namespace

AlignedText AlignedText::of(std::string_view original, size_t begin, size_t end) {
  AlignedText piece{std::string(original.substr(begin, end - begin)), std::vector<size_t>(end - begin), begin};
  std::iota(piece.ends.begin(), piece.ends.end(), begin + 1);
  return piece;
}

AlignedText AlignedText::slice(size_t first, size_t last) const {
  return {text.substr(first, last - first),
          {ends.begin() + static_cast<ptrdiff_t>(first), ends.begin() + static_cast<ptrdiff_t>(last)},
          begin_of(first)};
}

void AlignedText::prepend(std::string_view what, size_t most) {
  check_size(text.size() + what.size(), most);
  text.insert(0, what);
  ends.insert(ends.begin(), what.size(), begin);
}

void AlignedText::append(std::string_view bytes, size_t from, size_t to) {
  if (bytes.empty()) return;
  text += bytes;
  ends.insert(ends.end(), bytes.size() - 1, from);
  ends.push_back(to);
}

void AlignedText::append(const AlignedText& of, size_t first, size_t last) {
  text.append(of.text, first, last - first);
  ends.insert(ends.end(), of.ends.begin() + static_cast<ptrdiff_t>(first),
              of.ends.begin() + static_cast<ptrdiff_t>(last));
}

void AlignedText::replace_all(std::string_view from, std::string_view to, size_t most) {
  size_t found = text.find(from);
  if (found == std::string::npos) return;
  size_t count = 0;
  for (size_t i = found; i != std::string::npos; i = text.find(from, i + from.size())) ++count;
  check_size(text.size() - count * from.size() + count * to.size(), most);
  AlignedText out{{}, {}, begin};
  out.text.reserve(text.size());
  out.ends.reserve(text.size());
  size_t done = 0;
  for (; found != std::string::npos; found = text.find(from, done)) {
    out.append(*this, done, found);
    done = found + from.size();
    out.append(to, begin_of(found), ends[done - 1]);
  }
  out.append(*this, done, text.size());
  *this = std::move(out);
}

}  // namespace espalier
