// SPDX-License-Identifier: Apache-2.0
// The tokens that are cut out of a text before BPE sees it: `<image>`, `</s>`, `<|im_start|>`. Found exactly, leftmost
// first and of several the longest. A token may ask to stand alone as a word, and may take the white space beside it
// along. A tree over their bytes: adding one takes as long as it is, however many there are,
// and looking at a place of the text no longer than the longest of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace espalier {

class AddedTokens {
 public:
  struct Match {
    size_t begin, end;
    int32_t id;
  };

  struct Rules {
    bool single_word = false;  // found only where no letter, digit or underscore stands beside it
    bool strip_left = false;   // white space in front of it goes with it
    bool strip_right = false;
  };

  // Empty content is never found; of two alike the first is.
  void add(std::string_view content, int32_t id, Rules rules);
  void add(std::string_view content, int32_t id) { add(content, id, {}); }
  std::vector<Match> find_all(std::string_view text) const;

 private:
  static constexpr int32_t kNone = -1;
  static uint64_t edge(int32_t node, char byte) {
    return static_cast<uint64_t>(static_cast<uint32_t>(node)) << 8 | static_cast<uint8_t>(byte);
  }

  std::unordered_map<uint64_t, int32_t> children_;  // edge -> node; node 0 is the root
  struct End {
    int32_t id = kNone;
    Rules rules = {};
  };
  std::vector<End> ends_ = {{}};  // [node] the token that ends there
};

}  // namespace espalier
