// SPDX-License-Identifier: Apache-2.0
// The regular expression of a pre-tokenizer, run by PCRE2 with the meaning that Oniguruma gives it in the
// `tokenizers` library. Const after construction; safe to share between threads.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace espalier {

class SplitPattern {
 public:
  // Throws Error "WHERE: …" for an expression that PCRE2 refuses.
  SplitPattern(const std::string& regex, const std::string& where);

  struct Fragment {
    size_t end;
    bool is_match;
  };
  // Valid UTF-8 text[begin, end) in order, without gaps: every match is a fragment, and so is what stands between two
  // of them. Look-ahead sees nothing behind `end`.
  void cut(std::string_view text, size_t begin, size_t end, std::vector<Fragment>& fragments) const;

  // One that matches the text as it stands.
  static std::string quoted(std::string_view text);

 private:
  std::shared_ptr<const pcre2_real_code_8> code_;
  std::string where_;
};

}  // namespace espalier
