// SPDX-License-Identifier: Apache-2.0
#include "serve/data_uri.h"

#include <array>
#include <cstdint>

#include "serve/api_error.h"

namespace espalier::serve {

namespace {

constexpr uint8_t kNone = 64;

constexpr std::array<uint8_t, 256> kValues = [] {
  std::array<uint8_t, 256> values{};
  values.fill(kNone);
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i) values[static_cast<uint8_t>(kAlphabet[i])] = static_cast<uint8_t>(i);
  return values;
}();

}  // namespace

std::vector<std::byte> read_base64(std::string_view text, const std::string& param) {
  const auto refuse = [&](const std::string& why) {
    throw ApiError(400, "invalid_base64", param + ": not base64: " + why, param);
  };
  std::string_view digits = text;
  for (int i = 0; i < 2 && digits.ends_with('='); ++i) digits.remove_suffix(1);
  const size_t rest = digits.size() % 4;
  if (rest == 1 || (digits.size() < text.size() && text.size() % 4 != 0)) refuse("its length is wrong, it is cut off");
  std::vector<std::byte> bytes;
  bytes.reserve(digits.size() / 4 * 3 + 2);
  uint32_t bits = 0;
  for (size_t i = 0; i < digits.size(); ++i) {
    const uint8_t value = kValues[static_cast<uint8_t>(digits[i])];
    if (value == kNone) refuse("byte " + std::to_string(i) + " is none of its digits");
    bits = bits << 6 | value;
    if (i % 4 == 0) continue;
    bytes.push_back(static_cast<std::byte>(bits >> (6 - 2 * (i % 4)) & 0xff));
  }
  return bytes;
}

std::vector<std::byte> read_data_uri(std::string_view uri, const std::string& param) {
  const size_t comma = uri.find(',');
  const std::string_view kind = uri.substr(0, comma);
  if (comma == std::string_view::npos || !kind.starts_with("data:image/") || !kind.ends_with(";base64"))
    throw ApiError(400, "invalid_image_url", param + ": expected data:image/…;base64,…", param);
  return read_base64(uri.substr(comma + 1), param);
}

}  // namespace espalier::serve
