// SPDX-License-Identifier: Apache-2.0
// The pre-tokenizer of a tokenizer.json: what BPE gets as one piece. Steps in the order of the file, each working on
// the parts that the one before left. That ByteLevel turns bytes into symbols is the business of bpe.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "text/aligned_text.h"
#include "text/split_pattern.h"

namespace espalier {

struct Metaspace {                                           // spaces written as ▁
  enum class Prepend : uint8_t { kFirst, kAlways, kNever };  // first: only to the piece that begins the text
  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  bool split = true;  // each replacement begins a part
};

// What becomes of a match: a part of its own; nothing; one part with the matches beside it; the end of the part before
// it; the beginning of the part behind it.
enum class SplitBehavior : uint8_t { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };

struct Split {
  SplitPattern pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what does not match counts as a match
};

// From here on text is written in the alphabet of byte_level.h, for the steps behind it too.
struct ByteLevel {
  bool add_prefix_space = false;           // to each part that has none
  std::optional<SplitPattern> words = {};  // GPT-2's, with use_regex
};

class PreTokenizer {
 public:
  using Step = std::variant<Metaspace, Split, ByteLevel>;
  struct Parts {
    AlignedText text;
    std::vector<size_t> ends;  // of the parts, ascending
  };

  // Behind ByteLevel only splits that remove nothing.
  void add(Step step);
  bool has_byte_level() const { return has_byte_level_; }

  Parts apply(AlignedText piece, size_t most) const;  // Error where it grows beyond `most` bytes

 private:
  std::vector<Step> steps_;
  std::vector<Split> splits_of_bytes_;  // behind ByteLevel
  bool has_byte_level_ = false;
};

}  // namespace espalier
