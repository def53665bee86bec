// SPDX-License-Identifier: Apache-2.0
#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

namespace espalier {

void AddedTokens::add(std::string content, int32_t id) {
  if (content.empty()) return;
  std::vector<Entry>& entries = by_first_byte_[static_cast<uint8_t>(content[0])];
  const auto place = std::find_if(entries.begin(), entries.end(),
                                  [&](const Entry& entry) { return entry.content.size() < content.size(); });
  entries.insert(place, {std::move(content), id});
}

std::vector<AddedTokens::Match> AddedTokens::find_all(std::string_view text) const {
  std::vector<Match> matches;
  for (size_t i = 0; i < text.size();) {
    const std::vector<Entry>& entries = by_first_byte_[static_cast<uint8_t>(text[i])];
    const auto found = std::find_if(entries.begin(), entries.end(),
                                    [&](const Entry& entry) { return text.substr(i).starts_with(entry.content); });
    if (found == entries.end()) {
      ++i;
      continue;
    }
    matches.push_back({i, i + found->content.size(), found->id});
    i = matches.back().end;
  }
  return matches;
}

}  // namespace espalier
