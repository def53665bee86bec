// SPDX-License-Identifier: Apache-2.0
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/split_pattern.h"

#include <pcre2.h>

#include "base/error_text.h"
#include "espalier/error.h"

namespace espalier {
namespace {

// Unicode's White_Space, which Oniguruma's \s means. PCRE2's \s has U+180E as well.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

std::string with_unicode_white_space(std::string_view regex, const std::string& where) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < regex.size(); ++i) {
    const char c = regex[i];
    if (c != '\\' || i + 1 == regex.size()) {
      if (c == '[' && in_class) throw Error(where + ": nested character classes are not supported");
      if (c == '[' || c == ']') in_class = c == '[';
      out += c;
      continue;
    }
    const char escaped = regex[++i];
    if (escaped == 'S' && in_class) throw Error(where + ": \\S inside a character class is not supported");
    if (escaped == 's' || escaped == 'S') {
      const std::string_view open = in_class ? "" : escaped == 's' ? "[" : "[^";
      out.append(open).append(kWhiteSpace).append(in_class ? "" : "]");
    } else {
      out += c;
      out += escaped;
    }
  }
  return out;
}

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

}  // namespace

SplitPattern::SplitPattern(const std::string& regex, const std::string& where) : where_(where) {
  const std::string pattern = with_unicode_white_space(regex, where);
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                       PCRE2_UTF | PCRE2_UCP, &code, &offset, nullptr);
  if (!compiled) throw Error(where + ": " + message_of(code) + " in " + in_quotes(regex));
  pcre2_jit_compile(compiled,
                    PCRE2_JIT_COMPLETE);  // only a matter of speed: where there is no JIT, pcre2_match interprets
  code_ = std::shared_ptr<const pcre2_code>(compiled,
                                            [](const pcre2_code* c) { pcre2_code_free(const_cast<pcre2_code*>(c)); });
}

void SplitPattern::cut(std::string_view text, size_t begin, size_t end, std::vector<size_t>& ends) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data() + begin);
  size_t done = begin;
  while (done < end) {
    const int found = pcre2_match(code_.get(), subject, end - begin, done - begin, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                                  match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) throw Error(where_ + ": " + message_of(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    if (begin + range[0] > done) ends.push_back(begin + range[0]);
    ends.push_back(done = begin + range[1]);
  }
  if (done < end) ends.push_back(end);
}

}  // namespace espalier
