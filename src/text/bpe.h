// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding of one piece of text: its characters (or bytes) become symbols, and neighbours are merged, the
// pair of lowest rank first and of these the leftmost. n log n in the length of the piece, which for Llama is the whole
// prompt.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/vocabulary.h"

namespace espalier {

class Bpe {
 public:
  enum class Alphabet {
    kCharacters,    // a character that is no token is unknown
    kByteFallback,  // … becomes its bytes, <0x00> to <0xFF>
    kByteLevel,     // bytes from the start, written in the alphabet of byte_level.h
  };
  struct Symbol {
    int32_t id;
    size_t end;  // offset in the piece behind its last byte
  };

  struct Rules {
    Alphabet alphabet = Alphabet::kCharacters;
    int32_t unknown_id = -1;     // -1: none
    bool fuse_unknown = false;   // neighbours that are unknown are one token
    bool ignore_merges = false;  // a piece that is a token as a whole is that token, merges or not
  };
  Bpe(Vocabulary vocabulary, Rules rules);

  // Ranks are given in order, 0, 1, …; a pair given twice keeps the later rank. False when a token is not in the
  // vocabulary.
  bool add_merge(std::string_view left, std::string_view right);

  // Appends the tokens of valid UTF-8. Throws Error for a character that the model cannot write: no token, no bytes, no
  // unknown token.
  void encode(std::string_view piece, std::vector<Symbol>& out) const;

  bool has_all_bytes() const;  // with kByteFallback or kByteLevel: whether each byte value has its token
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank;
    int32_t id;  // of the merged token
  };
  struct Node;
  struct Candidate;
  struct PairHash {
    size_t operator()(uint64_t pair) const {
      return static_cast<size_t>((pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 7);
    }
  };

  int32_t id_of_whole(std::string_view piece) const;  // -1: no token
  std::vector<Node> symbols_of(std::string_view piece) const;
  bool append_bytes(std::string_view piece, size_t begin, size_t end, std::vector<Node>& out) const;
  void append_unknown(std::string_view piece, size_t begin, size_t end, std::vector<Node>& out) const;
  void merge(std::vector<Node>& nodes) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  Vocabulary vocabulary_;
  Rules rules_;
  std::array<int32_t, 256> byte_ids_;                     // -1: no token for this byte
  std::unordered_map<uint64_t, Merge, PairHash> merges_;  // (left id, right id) -> merge
  int32_t next_rank_ = 0;
};

}  // namespace espalier
