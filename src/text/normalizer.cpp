// SPDX-License-Identifier: Apache-2.0
#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <string_view>

#include "base/utf8.h"

namespace espalier {
namespace {

bool is_ascii(char byte) {
  return static_cast<uint8_t>(byte) < 0x80;
}

struct Range {
  char32_t first, last;
};

// Marks that Unicode has got since version 9. The `tokenizers` library, and with it every published model, composes by
// version 9, where these are unknown and neither move nor join; utf8proc knows those up to version 15. Found by asking
// both about every code point.
constexpr Range kMarksSinceUnicode9[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}};

bool is_new_mark(char32_t code) {
  const auto* range = std::lower_bound(std::begin(kMarksSinceUnicode9), std::end(kMarksSinceUnicode9), code,
                                       [](const Range& r, char32_t c) { return r.last < c; });
  return range != std::end(kMarksSinceUnicode9) && range->first <= code;
}

// Whether NFC may join or reorder the character with what stands in front of it: marks, and the Hangul vowels and final
// consonants. Where this is false, text may be cut and composed piece by piece.
bool may_combine_backwards(char32_t code) {
  if (code < 0x300) return false;
  if ((code >= 0x1161 && code <= 0x1175) || (code >= 0x11A8 && code <= 0x11C2)) return true;
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  const bool mark =
      category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
  return mark && !is_new_mark(code);
}

int combining_class(utf8proc_int32_t code) {
  return is_new_mark(static_cast<char32_t>(code)) ? 0 : utf8proc_get_property(code)->combining_class;
}

// The composed form of a short valid text, appended to `out`. The marks are sorted here, as utf8proc's own sort takes
// quadratic time, which a prompt of nothing but marks would feel.
class Composer {
 public:
  void compose(std::string_view text, std::string& out) {
    codes_.clear();
    for (size_t i = 0; i < text.size();) {
      const Utf8Character character = utf8_at(text, i);
      i += character.length;
      utf8proc_int32_t parts[8];  // no canonical decomposition has more than four
      const auto count =
          utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character.code), parts, 8, UTF8PROC_DECOMPOSE, nullptr);
      codes_.insert(codes_.end(), parts, parts + count);
    }
    sort_marks();
    const auto length = utf8proc_normalize_utf32(codes_.data(), static_cast<utf8proc_ssize_t>(codes_.size()),
                                                 static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    for (utf8proc_ssize_t i = 0; i < length; ++i)
      append_utf8(static_cast<char32_t>(codes_[static_cast<size_t>(i)]), out);
  }

 private:
  void sort_marks() {
    const auto is_starter = [](utf8proc_int32_t code) { return combining_class(code) == 0; };
    for (auto begin = codes_.begin(); begin != codes_.end();) {
      begin = std::find_if_not(begin, codes_.end(), is_starter);
      const auto end = std::find_if(begin, codes_.end(), is_starter);
      std::stable_sort(begin, end, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
      begin = end;
    }
  }
  std::vector<utf8proc_int32_t> codes_;
};

// Behind the character at `begin` and all that may combine with it.
size_t segment_end(std::string_view text, size_t begin) {
  size_t end = begin + utf8_at(text, begin).length;
  while (end < text.size() && !is_ascii(text[end])) {
    const Utf8Character next = utf8_at(text, end);
    if (!may_combine_backwards(next.code)) break;
    end += next.length;
  }
  return end;
}

void apply_nfc(AlignedText& piece) {
  if (std::all_of(piece.text.begin(), piece.text.end(), is_ascii)) return;
  AlignedText out{{}, {}, piece.begin};
  out.text.reserve(piece.text.size());
  out.ends.reserve(piece.text.size());
  Composer composer;
  std::string composed;
  for (size_t begin = 0, end; begin < piece.text.size(); begin = end) {
    end = segment_end(piece.text, begin);
    const std::string_view segment = std::string_view(piece.text).substr(begin, end - begin);
    composed.clear();
    if (segment.size() > 1) composer.compose(segment, composed);
    if (segment.size() == 1 || composed == segment) {
      out.append(piece, begin, end);
    } else {
      out.append(composed, piece.begin_of(begin), piece.ends[end - 1]);
    }
  }
  piece = std::move(out);
}

}  // namespace

void Normalizer::apply(AlignedText& piece, size_t most) const {
  for (const Step& step : steps_) {
    if (const auto* prepend = std::get_if<Prepend>(&step)) {
      if (!piece.text.empty()) piece.prepend(prepend->what, most);
    } else if (const auto* replace = std::get_if<Replace>(&step)) {
      piece.replace_all(replace->from, replace->to, most);
    } else {
      apply_nfc(piece);
    }
  }
}

}  // namespace espalier
