// SPDX-License-Identifier: Apache-2.0
// The decoder of a tokenizer.json: tokens back to text, one after another, holding back what the next token may still
// change. Whether a token is shown at all (special ones) is decided by the caller.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace espalier {

class TokenDecoder {
 public:
  // Of one text that is being decoded.
  struct State {
    std::string held_back;  // bytes that are no whole character yet, or a run of byte tokens that may still grow
    size_t stripped = 0;    // characters taken off the front so far
    bool at_front = true;   // nothing that stays has come yet
    bool is_first = true;   // no token has come yet
  };

  // ByteLevel: characters of byte_level.h to bytes, the bytes to UTF-8 with one U+FFFD for each invalid sequence.
  static TokenDecoder byte_level();

  // Sequence of Replace, ByteFallback, Fuse, Strip. A run of byte tokens that is not wholly UTF-8 becomes one U+FFFD
  // per byte.
  struct Steps {
    std::vector<std::pair<std::string, std::string>> replace;  // from, to, within each token
    bool byte_fallback = false;
    std::string strip;  // one character; as many of these as `strip_count` are taken off the front of the whole text
    size_t strip_count = 0;
  };
  static TokenDecoder sequence(Steps steps);

  // Metaspace: `replacement` (▁) to a space; with `strips_first` it is nothing in the first token.
  static TokenDecoder metaspace(std::string replacement, bool strips_first);

  // Appends to `out` what became certain.
  void add(std::string_view token, State& state, std::string& out) const;
  void finish(State& state, std::string& out) const;

 private:
  void flush_run(State& state, std::string& out) const;
  void append_stripped(std::string_view text, State& state, std::string& out) const;

  bool byte_level_ = false;
  std::string metaspace_;  // empty: another decoder
  bool strips_first_ = false;
  Steps steps_;
};

}  // namespace espalier
