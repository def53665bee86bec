// SPDX-License-Identifier: Apache-2.0
// Who may ask. Keys are compared by their digests, every one of them and to the end, so that the time of a refusal says
// nothing about them.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace espalier::serve {

using Digest = std::array<uint8_t, 32>;
Digest sha256(std::string_view text);
std::string hexadecimal(const Digest& digest);

class ApiKeys {
 public:
  ApiKeys() = default;
  // One key a line; empty lines and those that begin with # are none. Throws Error when the file cannot be read, has no
  // key, or one shorter than 16 characters.
  static ApiKeys read(const std::filesystem::path& file);

  bool empty() const { return keys_.empty(); }
  // `authorization`: the header, "Bearer KEY".
  bool accepts(const std::optional<std::string>& authorization) const;

 private:
  std::vector<Digest> keys_;
};

}  // namespace espalier::serve
