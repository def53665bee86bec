// SPDX-License-Identifier: Apache-2.0
#include "serve/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <fstream>
#include <stdexcept>

#include "espalier/error.h"

namespace espalier::serve {

Digest sha256(std::string_view text) {
  Digest digest;
  if (EVP_Digest(text.data(), text.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1)
    throw std::runtime_error("OpenSSL cannot make a digest");
  return digest;
}

std::string hexadecimal(const Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : digest) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  return text;
}

ApiKeys ApiKeys::read(const std::filesystem::path& file) {
  constexpr size_t kShortest = 16;
  std::ifstream in(file);
  if (!in) throw Error(file.string() + ": cannot read the API keys");
  ApiKeys keys;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty() || line.starts_with('#')) continue;
    if (line.size() < kShortest)
      throw Error(file.string() + ": line " + std::to_string(number) + ": a key of at least " +
                  std::to_string(kShortest) + " characters was expected");
    keys.keys_.push_back(sha256(line));
  }
  if (keys.empty()) throw Error(file.string() + ": there is no API key in it");
  return keys;
}

bool ApiKeys::accepts(const std::optional<std::string>& authorization) const {
  constexpr std::string_view kBearer = "Bearer ";
  if (!authorization || !authorization->starts_with(kBearer)) return false;
  const Digest given = sha256(std::string_view(*authorization).substr(kBearer.size()));
  int found = 0;
  for (const Digest& key : keys_) found |= CRYPTO_memcmp(key.data(), given.data(), key.size()) == 0 ? 1 : 0;
  return found != 0;
}

}  // namespace espalier::serve
