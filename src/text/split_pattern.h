// SPDX-License-Identifier: Apache-2.0
// The regular expression of a Split pre-tokenizer, run by PCRE2 with the meaning that Oniguruma gives it in the
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

  // Appends to `ends` where the parts of valid UTF-8 text[begin, end) end: every match is a part, and so is what stands
  // between two matches ("Isolated"). Look-ahead sees nothing behind `end`.
  void cut(std::string_view text, size_t begin, size_t end, std::vector<size_t>& ends) const;

 private:
  std::shared_ptr<const pcre2_real_code_8> code_;
  std::string where_;
};

}  // namespace espalier
