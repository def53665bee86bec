// SPDX-License-Identifier: Apache-2.0
// Tokens and their ids, both ways.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace espalier {

class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;  // no copies: tokens_ points into ids_

  void reserve(size_t count) { ids_.reserve(count); }

  // False, and nothing added, when the token or the id is there already with another partner.
  bool add(const std::string& token, int32_t id) {
    const size_t index = static_cast<size_t>(id);
    if (index >= tokens_.size()) tokens_.resize(index + 1, nullptr);
    const auto [it, is_new] = ids_.try_emplace(token, id);
    if (!is_new) return it->second == id;
    if (tokens_[index]) {
      ids_.erase(it);
      return false;
    }
    tokens_[index] = &it->first;  // nodes of an unordered_map do not move
    return true;
  }

  int32_t id_of(std::string_view token) const {  // -1: no such token
    const auto it = ids_.find(token);
    return it == ids_.end() ? -1 : it->second;
  }
  const std::string* token_of(int32_t id) const {  // nullptr: no such id
    return id < 0 || id >= size() ? nullptr : tokens_[static_cast<size_t>(id)];
  }
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }  // one more than the largest id

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view token) const { return std::hash<std::string_view>()(token); }
  };
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  std::vector<const std::string*> tokens_;
};

}  // namespace espalier
