// SPDX-License-Identifier: Apache-2.0
#include "text/pre_tokenizer.h"

#include <string_view>

#include "base/utf8.h"
#include "text/byte_level.h"

namespace espalier {
namespace {

using Parts = PreTokenizer::Parts;

// Calls `on_part(begin, end)` for each.
template <typename OnPart>
void for_each_part(const Parts& parts, OnPart on_part) {
  size_t begin = 0;
  for (const size_t end : parts.ends) {
    on_part(begin, end);
    begin = end;
  }
}

void append_metaspace(const Metaspace& metaspace, AlignedText part, size_t most, Parts& out) {
  part.replace_all(" ", metaspace.replacement, most);
  const bool wanted = metaspace.prepend == Metaspace::Prepend::kAlways ||
                      (metaspace.prepend == Metaspace::Prepend::kFirst && part.begin == 0);
  if (wanted && !part.text.starts_with(metaspace.replacement)) part.prepend(metaspace.replacement, most);
  const size_t begin = out.text.text.size();
  if (metaspace.split) {
    size_t found = part.text.find(metaspace.replacement, 1);
    for (; found != std::string::npos; found = part.text.find(metaspace.replacement, found + 1))
      out.ends.push_back(begin + found);
  }
  out.text.append(part, 0, part.text.size());
  out.ends.push_back(out.text.text.size());
}

Parts after(const Metaspace& metaspace, const Parts& parts, size_t most) {
  Parts out{{{}, {}, parts.text.begin}, {}};
  for_each_part(
      parts, [&](size_t begin, size_t end) { append_metaspace(metaspace, parts.text.slice(begin, end), most, out); });
  return out;
}

// Whether a fragment goes on in the next one.
bool joins(SplitBehavior behavior, bool is_match, bool next_is_match) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
    case SplitBehavior::kRemoved:
      return false;
    case SplitBehavior::kContiguous:
      return is_match == next_is_match;
    case SplitBehavior::kMergedWithPrevious:
      return !is_match && next_is_match;
    case SplitBehavior::kMergedWithNext:
      return is_match && !next_is_match;
  }
  return false;
}

Parts after(const Split& split, Parts parts, size_t) {
  const bool removes = split.behavior == SplitBehavior::kRemoved;
  AlignedText left{{}, {}, parts.text.begin};  // with kRemoved
  std::vector<size_t> ends;
  std::vector<SplitPattern::Fragment> fragments;
  for_each_part(parts, [&](size_t begin, size_t end) {
    fragments.clear();
    split.pattern.cut(parts.text.text, begin, end, fragments);
    size_t done = begin;
    for (size_t i = 0; i < fragments.size(); ++i) {
      const bool is_match = fragments[i].is_match != split.invert;
      if (removes) {
        if (!is_match) left.append(parts.text, done, fragments[i].end), ends.push_back(left.text.size());
        done = fragments[i].end;
      } else if (i + 1 == fragments.size() ||
                 !joins(split.behavior, is_match, fragments[i + 1].is_match != split.invert)) {
        ends.push_back(fragments[i].end);
      }
    }
  });
  if (removes) parts.text = std::move(left);
  parts.ends = std::move(ends);
  return parts;
}

Parts with_prefix_spaces(const Parts& parts) {
  Parts out{{{}, {}, parts.text.begin}, {}};
  for_each_part(parts, [&](size_t begin, size_t end) {
    const size_t place = parts.text.begin_of(begin);
    if (parts.text.text[begin] != ' ') out.text.append(" ", place, place);
    out.text.append(parts.text, begin, end);
    out.ends.push_back(out.text.text.size());
  });
  return out;
}

// Cuts by what the bytes look like in the byte-level alphabet.
Parts after(const std::vector<Split>& splits, Parts parts) {
  Parts written{{{}, {}, 0}, {}};
  for_each_part(parts, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      std::string character;
      append_utf8(kByteLevelAlphabet[static_cast<unsigned char>(parts.text.text[i])], character);
      written.text.append(character, i, i + 1);
    }
    written.ends.push_back(written.text.text.size());
  });
  for (const Split& split : splits) written = after(split, std::move(written), 0);
  parts.ends.clear();
  for (const size_t end : written.ends) parts.ends.push_back(written.text.ends[end - 1]);
  return parts;
}

Parts after(const ByteLevel& byte_level, Parts parts, size_t most) {
  if (byte_level.add_prefix_space) parts = with_prefix_spaces(parts);
  return byte_level.words ? after(Split{*byte_level.words}, std::move(parts), most) : parts;
}

}  // namespace

void PreTokenizer::add(Step step) {
  if (has_byte_level_) {
    splits_of_bytes_.push_back(std::move(std::get<Split>(step)));
    return;
  }
  has_byte_level_ = std::holds_alternative<ByteLevel>(step);
  steps_.push_back(std::move(step));
}

PreTokenizer::Parts PreTokenizer::apply(AlignedText piece, size_t most) const {
  if (piece.text.empty()) return {};
  const size_t size = piece.text.size();
  Parts parts{std::move(piece), {size}};
  for (const Step& step : steps_)
    parts = std::visit([&](const auto& one) { return after(one, std::move(parts), most); }, step);
  return splits_of_bytes_.empty() ? parts : after(splits_of_bytes_, std::move(parts));
}

}  // namespace espalier
