// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4), to tell pictures apart and to pin lists of them. Not for anything secret.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace espalier {

class Sha256 {
 public:
  void add(std::span<const uint8_t> bytes);
  void add(std::string_view text);
  std::string hex();  // of all that was added; nothing may be added afterwards

 private:
  void absorb_block();

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  size_t filled_ = 0;
  uint64_t length_ = 0;  // bytes
};

}  // namespace espalier
