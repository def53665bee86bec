// SPDX-License-Identifier: Apache-2.0
#include "text/added_tokens.h"

namespace espalier {

void AddedTokens::add(std::string_view content, int32_t id) {
  int32_t node = 0;
  for (const char byte : content) {
    const auto [child, is_new] = children_.try_emplace(edge(node, byte), static_cast<int32_t>(ids_.size()));
    if (is_new) ids_.push_back(kNone);
    node = child->second;
  }
  if (node != 0 && ids_[static_cast<size_t>(node)] == kNone) ids_[static_cast<size_t>(node)] = id;
}

std::vector<AddedTokens::Match> AddedTokens::find_all(std::string_view text) const {
  std::vector<Match> matches;
  if (children_.empty()) return matches;
  for (size_t i = 0; i < text.size();) {
    Match longest{i, i, kNone};
    int32_t node = 0;
    for (size_t end = i; end < text.size();) {
      const auto child = children_.find(edge(node, text[end++]));
      if (child == children_.end()) break;
      node = child->second;
      const int32_t id = ids_[static_cast<size_t>(node)];
      if (id != kNone) longest = {i, end, id};
    }
    if (longest.id != kNone) matches.push_back(longest);
    i = longest.id != kNone ? longest.end : i + 1;
  }
  return matches;
}

}  // namespace espalier
