// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a checkpoint folder, read from its tokenizer.json: text to ids and back, token-exact with the
// `tokenizers` library for the models that Espalier runs. Const after construction; safe to share between threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

class Tokenizer {
 public:
  // Throws Error when tokenizer.json is missing, malformed, or uses a normalizer, pre-tokenizer, model or decoder that
  // is not supported (the message names it).
  static Tokenizer load(const std::filesystem::path& folder);

  // One token and where it ends: `end` is the byte offset in the text after its last byte (0 for tokens that the
  // post-processor puts in front). Exact at every ASCII character; where NFC composes characters a token may end
  // between two.
  struct Token {
    int32_t id;
    size_t end;
  };

  // `add_special`: with what the post-processor adds (`<s>` for Llama). Special tokens written out in the text become
  // their ids. Throws Error for text that is not UTF-8, naming the first bad byte.
  std::vector<int32_t> encode(std::string_view text, bool add_special = true) const;
  std::vector<Token> encode_with_ends(std::string_view text, bool add_special = true) const;

  // Ids past the vocabulary decode to nothing (checkpoints have more logits than tokens). Bytes that are not UTF-8
  // become U+FFFD.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  std::optional<int32_t> id_of(
      std::string_view token) const;  // the id of one token of the vocabulary, added tokens included
  int32_t size() const;               // one more than the largest id

  // Decodes token by token for streaming: each call returns the text that became certain, holding back incomplete
  // characters. The concatenation of all pieces and of finish() equals decode() of all ids.
  class Stream {
   public:
    explicit Stream(const Tokenizer& tokenizer, bool skip_special = true);
    Stream(Stream&&) noexcept;
    Stream& operator=(Stream&&) noexcept;
    ~Stream();

    std::string add(int32_t id);
    std::string finish();  // afterwards a new text can be streamed

   private:
    std::shared_ptr<const struct TokenizerImpl> impl_;
    struct State;
    std::unique_ptr<State> state_;  // what was held back
    bool skip_special_;
  };

 private:
  explicit Tokenizer(std::shared_ptr<const struct TokenizerImpl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const struct TokenizerImpl> impl_;
};

}  // namespace espalier
