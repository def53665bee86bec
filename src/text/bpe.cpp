// SPDX-License-Identifier: Apache-2.0
#include "text/bpe.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "base/error_text.h"
#include "base/utf8.h"
#include "espalier/error.h"
#include "text/byte_level.h"

namespace espalier {
namespace {

constexpr int32_t kNone = -1;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

std::string byte_token(int byte) {
  char token[8];
  std::snprintf(token, sizeof token, "<0x%02X>", static_cast<unsigned>(byte));
  return token;
}

}  // namespace

struct Bpe::Node {
  int32_t id;
  int32_t previous, next;
  size_t end;
};

struct Bpe::Candidate {
  int32_t rank;
  int32_t position;  // of the left node
  int32_t merged_id;

  // std::push_heap keeps the largest on top: the better candidate must be the larger.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

Bpe::Bpe(Vocabulary vocabulary, Rules rules) : vocabulary_(std::move(vocabulary)), rules_(rules) {
  byte_ids_.fill(kNone);
  if (rules_.alphabet == Alphabet::kCharacters) return;
  for (int byte = 0; byte < 256; ++byte) {
    std::string token;
    if (rules_.alphabet == Alphabet::kByteFallback) {
      token = byte_token(byte);
    } else {
      append_utf8(kByteLevelAlphabet[static_cast<size_t>(byte)], token);
    }
    byte_ids_[static_cast<size_t>(byte)] = vocabulary_.id_of(token);
  }
}

bool Bpe::add_merge(std::string_view left, std::string_view right) {
  const int32_t left_id = vocabulary_.id_of(left), right_id = vocabulary_.id_of(right);
  const int32_t merged_id = vocabulary_.id_of(std::string(left).append(right));
  if (left_id < 0 || right_id < 0 || merged_id < 0) return false;
  merges_[pair_key(left_id, right_id)] = {next_rank_++, merged_id};
  return true;
}

bool Bpe::has_all_bytes() const {
  return std::find(byte_ids_.begin(), byte_ids_.end(), kNone) == byte_ids_.end();
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const auto it = merges_.find(pair_key(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

bool Bpe::append_bytes(std::string_view piece, size_t begin, size_t end, std::vector<Node>& out) const {
  const auto id_at = [&](size_t i) { return byte_ids_[static_cast<uint8_t>(piece[i])]; };
  for (size_t i = begin; i < end; ++i) {
    if (id_at(i) < 0) return false;
  }
  for (size_t i = begin; i < end; ++i) out.push_back({id_at(i), kNone, kNone, i + 1});
  return true;
}

void Bpe::append_unknown(std::string_view piece, size_t begin, size_t end, std::vector<Node>& out) const {
  if (rules_.unknown_id < 0) {
    throw Error("the tokenizer has no token for " + in_quotes(piece.substr(begin, end - begin)) +
                " and no unk_token to stand for it");
  }
  if (rules_.fuse_unknown && !out.empty() && out.back().id == rules_.unknown_id) {
    out.back().end = end;
  } else {
    out.push_back({rules_.unknown_id, kNone, kNone, end});
  }
}

std::vector<Bpe::Node> Bpe::symbols_of(std::string_view piece) const {
  std::vector<Node> nodes;
  nodes.reserve(piece.size());
  for (size_t begin = 0, end; begin < piece.size(); begin = end) {
    if (rules_.alphabet == Alphabet::kByteLevel) {
      end = begin + 1;
      if (!append_bytes(piece, begin, end, nodes)) append_unknown(piece, begin, end, nodes);
      continue;
    }
    end = begin + utf8_at(piece, begin).length;
    const int32_t id = vocabulary_.id_of(piece.substr(begin, end - begin));
    if (id >= 0) {
      nodes.push_back({id, kNone, kNone, end});
    } else if (!append_bytes(piece, begin, end, nodes)) {
      append_unknown(piece, begin, end, nodes);
    }
  }
  for (size_t i = 0; i < nodes.size(); ++i) {
    nodes[i].previous = static_cast<int32_t>(i) - 1;
    nodes[i].next = i + 1 < nodes.size() ? static_cast<int32_t>(i) + 1 : kNone;
  }
  return nodes;
}

void Bpe::merge(std::vector<Node>& nodes) const {
  const auto at = [&](int32_t position) -> Node& { return nodes[static_cast<size_t>(position)]; };
  std::vector<Candidate> heap;
  const auto consider = [&](int32_t left) {  // true: a candidate was appended
    if (left == kNone || at(left).next == kNone) return false;
    const Merge* found = find_merge(at(left).id, at(at(left).next).id);
    if (found) heap.push_back({found->rank, left, found->id});
    return found != nullptr;
  };
  for (size_t i = 0; i < nodes.size(); ++i) consider(static_cast<int32_t>(i));
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Node& left = at(best.position);
    if (left.id == kNone || left.next == kNone) continue;  // has gone into a neighbour since
    Node& right = at(left.next);
    const Merge* still = find_merge(left.id, right.id);
    if (!still || still->id != best.merged_id) continue;  // a neighbour has changed since
    left.id = best.merged_id;
    left.end = right.end;
    left.next = right.next;
    right.id = kNone;
    if (left.next != kNone) at(left.next).previous = best.position;
    if (consider(left.previous)) std::push_heap(heap.begin(), heap.end());
    if (consider(best.position)) std::push_heap(heap.begin(), heap.end());
  }
}

int32_t Bpe::id_of_whole(std::string_view piece) const {
  if (rules_.alphabet != Alphabet::kByteLevel) return vocabulary_.id_of(piece);
  std::string written;
  for (const char byte : piece) append_utf8(kByteLevelAlphabet[static_cast<uint8_t>(byte)], written);
  return vocabulary_.id_of(written);
}

void Bpe::encode(std::string_view piece, std::vector<Symbol>& out) const {
  if (rules_.ignore_merges) {
    if (const int32_t id = id_of_whole(piece); id >= 0) return out.push_back({id, piece.size()});
  }
  std::vector<Node> nodes = symbols_of(piece);
  merge(nodes);
  for (const Node& node : nodes) {
    if (node.id != kNone) out.push_back({node.id, node.end});
  }
}

}  // namespace espalier
