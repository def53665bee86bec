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

// What \w means to Oniguruma: what is alphabetic (letters in circles and squares too), marks, decimal digits,
// connectors, and the superscript digits and fractions of Latin-1. PCRE2's has all numbers, and neither marks nor
// connectors beyond the underscore. Found by asking for every code point.
constexpr std::string_view kWord = R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}\x{24B6}-\x{24E9})"
                                   R"(\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";

// The expression in PCRE2's words. A class within a class is the union of both, which is what both without the inner
// brackets are.
std::string in_words_of_pcre(std::string_view regex, const std::string& where) {
  std::string out;
  int depth = 0;  // of brackets
  for (size_t i = 0; i < regex.size(); ++i) {
    const char c = regex[i];
    const std::string_view rest = regex.substr(i);
    if (c == '[' && depth > 0 && !rest.starts_with("[:")) {
      if (rest.starts_with("[^")) throw Error(where + ": a negated class within a class is not supported");
      ++depth;
    } else if (c == ']' && depth > 1) {
      --depth;
    } else if (c == '&' && depth > 0 && rest.starts_with("&&")) {
      throw Error(where + ": && within a class is not supported");
    } else if (c == '[' && depth > 0) {  // [:alpha:]
      const size_t end = rest.find(":]");
      if (end == std::string_view::npos) throw Error(where + ": [: without :] in " + in_quotes(regex));
      out += rest.substr(0, end + 2);
      i += end + 1;
    } else if (c != '\\' || i + 1 == regex.size()) {
      if (c == '[' || c == ']') depth = c == '[' ? 1 : 0;
      out += c;
    } else {
      const char escaped = regex[++i];
      const bool is_negated = escaped == 'S' || escaped == 'W';
      if (is_negated && depth > 0) throw Error(where + ": \\" + escaped + " inside a character class is not supported");
      if (escaped == 'h' || escaped == 'H')  // a hexadecimal digit there, white space here
        throw Error(where + ": \\" + escaped + " is not supported");
      const bool is_white = escaped == 's' || escaped == 'S';
      if (is_white || escaped == 'w' || escaped == 'W') {
        const std::string_view open = depth > 0 ? "" : is_negated ? "[^" : "[";
        out.append(open).append(is_white ? kWhiteSpace : kWord).append(depth > 0 ? "" : "]");
      } else {
        out += c;
        out += escaped;
      }
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
  const std::string pattern = in_words_of_pcre(regex, where);
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

void SplitPattern::cut(std::string_view text, size_t begin, size_t end, std::vector<Fragment>& fragments) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data() + begin);
  size_t done = begin;
  while (done < end) {
    const int found = pcre2_match(code_.get(), subject, end - begin, done - begin, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                                  match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) throw Error(where_ + ": " + message_of(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    if (begin + range[0] > done) fragments.push_back({begin + range[0], false});
    fragments.push_back({done = begin + range[1], true});
  }
  if (done < end) fragments.push_back({end, false});
}

std::string SplitPattern::quoted(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}-#/").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace espalier
