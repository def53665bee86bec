// SPDX-License-Identifier: Apache-2.0
// The normalizer of a tokenizer.json: Prepend, Replace (of a plain string) and NFC, in the order of the file. Reading
// the file is not done here.
#pragma once

#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "text/aligned_text.h"

namespace espalier {

class Normalizer {
 public:
  struct Prepend {  // not to an empty text
    std::string what;
  };
  struct Replace {
    std::string from, to;
  };
  struct Nfc {};
  using Step = std::variant<Prepend, Replace, Nfc>;

  void add(Step step) { steps_.push_back(std::move(step)); }
  void apply(AlignedText& piece, size_t most) const;  // Error where it grows beyond `most` bytes

 private:
  std::vector<Step> steps_;
};

}  // namespace espalier
