// SPDX-License-Identifier: Apache-2.0
#include "base/base64.h"

#include <openssl/evp.h>

#include <algorithm>

namespace espalier {

std::string base64(std::span<const std::byte> bytes) {
  constexpr size_t kPiece = size_t{3} << 20;  // libcrypto counts in int; pieces of whole groups join without padding
  std::string text;
  for (size_t begin = 0; begin < bytes.size(); begin += kPiece) {
    const std::span<const std::byte> piece = bytes.subspan(begin, std::min(kPiece, bytes.size() - begin));
    const size_t size = text.size(), added = (piece.size() + 2) / 3 * 4;
    text.resize(size + added + 1);  // it ends what it writes with a zero
    EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data() + size),
                    reinterpret_cast<const unsigned char*>(piece.data()), static_cast<int>(piece.size()));
    text.resize(size + added);
  }
  return text;
}

}  // namespace espalier
