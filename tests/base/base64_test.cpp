// SPDX-License-Identifier: Apache-2.0
#include "base/base64.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace espalier {
namespace {

std::string of(std::string_view text) {
  return base64(std::as_bytes(std::span(text)));
}

TEST(Base64, VectorsOfRfc4648) {
  EXPECT_EQ(of(""), "");
  EXPECT_EQ(of("f"), "Zg==");
  EXPECT_EQ(of("fo"), "Zm8=");
  EXPECT_EQ(of("foo"), "Zm9v");
  EXPECT_EQ(of("foob"), "Zm9vYg==");
  EXPECT_EQ(of("fooba"), "Zm9vYmE=");
  EXPECT_EQ(of("foobar"), "Zm9vYmFy");
}

// Longer than one piece that libcrypto is given: three bytes of zeros are "AAAA", and only the end is padded.
TEST(Base64, PiecesJoin) {
  const std::string text = of(std::string((size_t{3} << 20) + 4, '\0'));
  EXPECT_EQ(text, std::string((size_t{4} << 20) + 6, 'A') + "==");
}

}  // namespace
}  // namespace espalier
