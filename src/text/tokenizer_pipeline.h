// SPDX-License-Identifier: Apache-2.0
// All parts of one tokenizer as a tokenizer.json describes them, and the reading of that file. How text goes through
// them is in tokenizer.cpp.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <unordered_set>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/token_decoder.h"
#include "text/vocabulary.h"

namespace espalier {

struct TokenizerImpl {
  AddedTokens raw_added;  // cut out of the text as written
  Normalizer normalizer;
  AddedTokens normalized_added;  // cut out of what the normalizer made, in normalized form themselves
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  std::vector<int32_t> prefix, suffix;  // what the post-processor puts around a text
  TokenDecoder decoder;
  Vocabulary added;  // the added tokens; those of the model are in bpe
  std::unordered_set<int32_t> special;

  const std::string* token_of(int32_t id) const {
    const std::string* token = added.token_of(id);
    return token ? token : bpe.vocabulary().token_of(id);
  }
};

// Throws Error for a file that is missing, broken, or asks for something that is not implemented.
std::shared_ptr<const TokenizerImpl> read_tokenizer_json(const std::filesystem::path& file);

}  // namespace espalier
