// SPDX-License-Identifier: Apache-2.0
// The pre-tokenizer of a tokenizer.json: what BPE gets as one piece. Either Metaspace (spaces written as ▁) or split
// patterns, or nothing. That ByteLevel turns bytes into symbols is the business of bpe.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "text/aligned_text.h"
#include "text/split_pattern.h"

namespace espalier {

struct Metaspace {
  enum class Prepend { kFirst, kAlways, kNever };  // first: only to the piece that begins the text
  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  bool split = true;  // each replacement begins a piece
};

struct PreTokenizer {
  std::optional<Metaspace> metaspace;
  std::vector<SplitPattern> splits;  // each works on the parts that the one before left

  // Changes `piece` as Metaspace does, to `most` bytes at most, and returns where its parts end, ascending.
  std::vector<size_t> apply(AlignedText& piece, size_t most) const;
};

}  // namespace espalier
