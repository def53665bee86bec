// SPDX-License-Identifier: Apache-2.0
// SHA-256 of bytes that come in pieces, to tell pictures apart and to pin lists of them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace espalier {

class Sha256 {
 public:
  Sha256();
  void add(std::span<const uint8_t> bytes);
  void add(std::string_view text);
  std::string hex();  // of all that was added; nothing may be added afterwards

 private:
  std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> context_;
};

}  // namespace espalier
