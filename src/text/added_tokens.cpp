// SPDX-License-Identifier: Apache-2.0
#include "text/added_tokens.h"

#include <algorithm>

#include "text/characters.h"

namespace espalier {

void AddedTokens::add(std::string_view content, int32_t id, Rules rules) {
  int32_t node = 0;
  for (const char byte : content) {
    const auto [child, is_new] = children_.try_emplace(edge(node, byte), static_cast<int32_t>(ends_.size()));
    if (is_new) ends_.emplace_back();
    node = child->second;
  }
  if (node != 0 && ends_[static_cast<size_t>(node)].id == kNone) ends_[static_cast<size_t>(node)] = {id, rules};
}

std::vector<AddedTokens::Match> AddedTokens::find_all(std::string_view text) const {
  std::vector<Match> matches;
  if (children_.empty()) return matches;
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    const End* longest = nullptr;
    int32_t node = 0;
    for (size_t at = i; at < text.size();) {
      const auto child = children_.find(edge(node, text[at++]));
      if (child == children_.end()) break;
      node = child->second;
      const End& here = ends_[static_cast<size_t>(node)];
      if (here.id != kNone) longest = &here, end = at;
    }
    if (!longest) {
      ++i;
      continue;
    }
    const std::string_view before = text.substr(0, i), behind = text.substr(end);
    i = end;  // one that does not stand alone hides the shorter ones in it all the same
    if (longest->rules.single_word && (ends_in_word(before) || begins_with_word(behind))) continue;
    Match match{before.size(), end, longest->id};
    if (longest->rules.strip_left)
      match.begin = std::max(before.size() - white_space_at_end(before), matches.empty() ? 0 : matches.back().end);
    if (longest->rules.strip_right) match.end += white_space_at_begin(behind);
    matches.push_back(match);
  }
  return matches;
}

}  // namespace espalier
