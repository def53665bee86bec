// SPDX-License-Identifier: Apache-2.0
#include "text/token_decoder.h"

#include <charconv>
#include <optional>

#include "base/error_text.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "espalier/error.h"
#include "text/byte_level.h"

namespace espalier {
namespace {

// The byte of a token like <0x0A>.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  uint8_t byte = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return static_cast<char>(byte);
}

// A token with a character outside of the byte-level alphabet (an added token) stands for its own bytes.
std::string bytes_of(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const Utf8Character character = utf8_at(token, i);
    const std::optional<uint8_t> byte = byte_level_byte(character.code);
    if (!byte) return std::string(token);
    bytes += static_cast<char>(*byte);
    i += character.length;
  }
  return bytes;
}

std::string replace_all(const std::string& text, const std::string& from, const std::string& to) {
  std::string out;
  size_t done = 0;
  for (size_t i = text.find(from); i != std::string::npos; i = text.find(from, done)) {
    out.append(text, done, i - done).append(to);
    done = i + from.size();
    if (out.size() > limits::kDecodedTokenBytes)
      throw Error(text_of("the tokenizer's decoder makes a text of more than ", limits::kDecodedTokenBytes,
                          " bytes of the token ", in_quotes(text)));
  }
  return out.append(text, done);
}

}  // namespace

TokenDecoder TokenDecoder::byte_level() {
  TokenDecoder decoder;
  decoder.byte_level_ = true;
  return decoder;
}

TokenDecoder TokenDecoder::metaspace(std::string replacement, bool strips_first) {
  TokenDecoder decoder;
  decoder.metaspace_ = std::move(replacement);
  decoder.strips_first_ = strips_first;
  return decoder;
}

TokenDecoder TokenDecoder::sequence(Steps steps) {
  TokenDecoder decoder;
  decoder.steps_ = std::move(steps);
  return decoder;
}

void TokenDecoder::append_stripped(std::string_view text, State& state, std::string& out) const {
  while (state.at_front && !text.empty()) {
    if (state.stripped < steps_.strip_count && text.starts_with(steps_.strip)) {
      text.remove_prefix(steps_.strip.size());
      ++state.stripped;
    } else {
      state.at_front = false;
    }
  }
  out += text;
}

void TokenDecoder::flush_run(State& state, std::string& out) const {
  if (first_invalid_utf8(state.held_back) == std::string_view::npos) {
    append_stripped(state.held_back, state, out);
  } else {
    for (size_t i = 0; i < state.held_back.size(); ++i) append_stripped(kReplacementCharacter, state, out);
  }
  state.held_back.clear();
}

void TokenDecoder::add(std::string_view token, State& state, std::string& out) const {
  if (byte_level_) {
    state.held_back += bytes_of(token);
    drain_utf8(state.held_back, false, out);
    return;
  }
  if (!metaspace_.empty()) {
    out += replace_all(std::string(token), metaspace_, state.is_first && strips_first_ ? "" : " ");
    state.is_first = false;
    return;
  }
  std::string text(token);
  for (const auto& [from, to] : steps_.replace) text = replace_all(text, from, to);
  if (const auto byte = steps_.byte_fallback ? fallback_byte(text) : std::nullopt) {
    state.held_back += *byte;
    return;
  }
  flush_run(state, out);
  append_stripped(text, state, out);
}

void TokenDecoder::finish(State& state, std::string& out) const {
  if (byte_level_) {
    drain_utf8(state.held_back, true, out);
  } else {
    flush_run(state, out);
  }
  state = {};
}

}  // namespace espalier
