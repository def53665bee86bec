// SPDX-License-Identifier: Apache-2.0
// The tokens that are cut out of a text before BPE sees it: `<image>`, `</s>`, `<|im_start|>`. Found exactly, leftmost
// first and of several the longest.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

class AddedTokens {
 public:
  struct Match {
    size_t begin, end;
    int32_t id;
  };

  void add(std::string content, int32_t id);  // empty content is never found
  std::vector<Match> find_all(std::string_view text) const;

 private:
  struct Entry {
    std::string content;
    int32_t id;
  };
  std::array<std::vector<Entry>, 256> by_first_byte_;  // the longest first
};

}  // namespace espalier
