// SPDX-License-Identifier: Apache-2.0
#include "text/pre_tokenizer.h"

namespace espalier {
namespace {

std::vector<size_t> apply_metaspace(const Metaspace& metaspace, AlignedText& piece, size_t most) {
  piece.replace_all(" ", metaspace.replacement, most);
  const bool wanted = metaspace.prepend == Metaspace::Prepend::kAlways ||
                      (metaspace.prepend == Metaspace::Prepend::kFirst && piece.begin == 0);
  if (wanted && !piece.text.starts_with(metaspace.replacement)) piece.prepend(metaspace.replacement, most);
  std::vector<size_t> ends;
  if (metaspace.split) {
    size_t found = piece.text.find(metaspace.replacement, 1);
    for (; found != std::string::npos; found = piece.text.find(metaspace.replacement, found + 1)) ends.push_back(found);
  }
  ends.push_back(piece.text.size());
  return ends;
}

}  // namespace

std::vector<size_t> PreTokenizer::apply(AlignedText& piece, size_t most) const {
  if (piece.text.empty()) return {};
  if (metaspace) return apply_metaspace(*metaspace, piece, most);
  std::vector<size_t> ends = {piece.text.size()};
  for (const SplitPattern& split : splits) {
    std::vector<size_t> finer;
    size_t begin = 0;
    for (size_t end : ends) {
      split.cut(piece.text, begin, end, finer);
      begin = end;
    }
    ends = std::move(finer);
  }
  return ends;
}

}  // namespace espalier
