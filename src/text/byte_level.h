// SPDX-License-Identifier: Apache-2.0
// The printable alphabet of byte-level BPE (GPT-2, Qwen): one character for each of the 256 byte values, so that any
// bytes can be written in a vocabulary file.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace espalier {

// Printable Latin-1 bytes stand for themselves; the others are U+0100, U+0101, … in ascending order.
constexpr std::array<char32_t, 256> byte_level_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

inline constexpr std::array<char32_t, 256> kByteLevelAlphabet = byte_level_alphabet();
inline constexpr char32_t kByteLevelEnd = 256 + 68;  // one past the largest: 68 bytes are not printable

constexpr std::array<int16_t, kByteLevelEnd> byte_level_bytes() {
  std::array<int16_t, kByteLevelEnd> bytes{};
  bytes.fill(-1);
  for (int16_t byte = 0; byte < 256; ++byte) bytes[kByteLevelAlphabet[static_cast<size_t>(byte)]] = byte;
  return bytes;
}

// The byte that a character of the alphabet stands for.
inline std::optional<uint8_t> byte_level_byte(char32_t character) {
  static constexpr std::array<int16_t, kByteLevelEnd> kBytes = byte_level_bytes();
  if (character >= kByteLevelEnd || kBytes[character] < 0) return std::nullopt;
  return static_cast<uint8_t>(kBytes[character]);
}

}  // namespace espalier
