// SPDX-License-Identifier: Apache-2.0
#include "espalier/tokenizer.h"

#include <algorithm>

#include "base/error_text.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "espalier/error.h"
#include "text/tokenizer_pipeline.h"

namespace espalier {
namespace {

using Tokens = std::vector<Tokenizer::Token>;

// Calls `on_text(begin, end)` and `on_token(match)` in the order of the text.
template <typename OnText, typename OnToken>
void cut_out(const AddedTokens& added, std::string_view text, OnText on_text, OnToken on_token) {
  size_t done = 0;
  for (const AddedTokens::Match& match : added.find_all(text)) {
    if (match.begin > done) on_text(done, match.begin);
    on_token(match);
    done = match.end;
  }
  if (done < text.size()) on_text(done, text.size());
}

// `left`: bytes that the steps of the pipeline may still make of this text.
void encode_words(const TokenizerImpl& tokenizer, AlignedText piece, size_t& left, Tokens& out) {
  std::vector<Bpe::Symbol> symbols;
  const size_t before = piece.text.size();
  const auto [text, ends] = tokenizer.pre_tokenizer.apply(std::move(piece), before + left);
  left -= std::max(before, text.text.size()) - before;
  size_t begin = 0;
  for (size_t end : ends) {
    symbols.clear();
    tokenizer.bpe.encode(std::string_view(text.text).substr(begin, end - begin), symbols);
    for (const Bpe::Symbol& symbol : symbols) out.push_back({symbol.id, text.ends[begin + symbol.end - 1]});
    begin = end;
  }
}

void encode_piece(const TokenizerImpl& tokenizer, AlignedText piece, size_t& left, Tokens& out) {
  tokenizer.normalizer.apply(piece, left);
  left -= std::min(left, piece.text.size());
  cut_out(
      tokenizer.normalized_added, piece.text,
      [&](size_t begin, size_t end) { encode_words(tokenizer, piece.slice(begin, end), left, out); },
      [&](const AddedTokens::Match& match) {
        out.push_back({match.id, piece.ends[match.end - 1]});
      });
}

Tokens encode_text(const TokenizerImpl& tokenizer, std::string_view text, bool add_special) {
  const size_t bad = first_invalid_utf8(text);
  if (bad != std::string_view::npos)
    throw Error("the text to tokenize is not UTF-8: bad byte at offset " + std::to_string(bad));
  if (text.size() > limits::kNormalizedBytes)
    throw Error(
        text_of("the text to tokenize has ", text.size(), " bytes, at most ", limits::kNormalizedBytes, " are taken"));
  size_t left = limits::kNormalizedBytes;
  Tokens out;
  if (add_special) {
    for (int32_t id : tokenizer.prefix) out.push_back({id, 0});
  }
  cut_out(
      tokenizer.raw_added, text,
      [&](size_t begin, size_t end) { encode_piece(tokenizer, AlignedText::of(text, begin, end), left, out); },
      [&](const AddedTokens::Match& match) {
        out.push_back({match.id, match.end});
      });
  if (add_special) {
    for (int32_t id : tokenizer.suffix) out.push_back({id, text.size()});
  }
  return out;
}

void decode_token(const TokenizerImpl& tokenizer, int32_t id, bool skip_special, TokenDecoder::State& state,
                  std::string& out) {
  if (skip_special && tokenizer.special.contains(id)) return;
  if (const std::string* token = tokenizer.token_of(id)) tokenizer.decoder.add(*token, state, out);
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& folder) {
  return Tokenizer(read_tokenizer_json(folder / "tokenizer.json"));
}

std::vector<Tokenizer::Token> Tokenizer::encode_with_ends(std::string_view text, bool add_special) const {
  return encode_text(*impl_, text, add_special);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  const Tokens tokens = encode_text(*impl_, text, add_special);
  std::vector<int32_t> ids(tokens.size());
  std::transform(tokens.begin(), tokens.end(), ids.begin(), [](const Token& token) { return token.id; });
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  TokenDecoder::State state;
  std::string text;
  for (int32_t id : ids) decode_token(*impl_, id, skip_special, state, text);
  impl_->decoder.finish(state, text);
  return text;
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  int32_t id = impl_->added.id_of(token);
  if (id < 0) id = impl_->bpe.vocabulary().id_of(token);
  return id < 0 ? std::nullopt : std::optional(id);
}

int32_t Tokenizer::size() const {
  return std::max(impl_->added.size(), impl_->bpe.vocabulary().size());
}

struct Tokenizer::Stream::State : TokenDecoder::State {};

Tokenizer::Stream::Stream(const Tokenizer& tokenizer, bool skip_special)
    : impl_(tokenizer.impl_), state_(std::make_unique<State>()), skip_special_(skip_special) {}
Tokenizer::Stream::Stream(Stream&&) noexcept = default;
Tokenizer::Stream& Tokenizer::Stream::operator=(Stream&&) noexcept = default;
Tokenizer::Stream::~Stream() = default;

std::string Tokenizer::Stream::add(int32_t id) {
  std::string text;
  decode_token(*impl_, id, skip_special_, *state_, text);
  return text;
}

std::string Tokenizer::Stream::finish() {
  std::string text;
  impl_->decoder.finish(*state_, text);
  return text;
}

}  // namespace espalier
