// SPDX-License-Identifier: Apache-2.0
#include "base/error_text.h"

#include <gtest/gtest.h>

#include <string>

#include "espalier/error.h"

#include <cstdint>
#include <vector>

namespace espalier {
namespace {

TEST(ErrorText, WordsAndNumbers) {
  const std::string file = "a.json";
  EXPECT_EQ(text_of(file, ": ", 3, ',', size_t{4}, " and ", int64_t{-5}, std::string_view("."), 0.25),
            "a.json: 3,4 and -5.0.25");
  EXPECT_EQ(text_of(), "");
}

TEST(ErrorText, Lists) {
  EXPECT_EQ(list_text(std::vector<int64_t>{2, 3, 4}), "[2, 3, 4]");
  EXPECT_EQ(list_text(std::vector<std::string>{"a", "b"}), "[a, b]");
  EXPECT_EQ(list_text(std::vector<int>{}), "[]");
}

TEST(Shown, EscapesAndCuts) {
  EXPECT_EQ(shown("a b é 日"), "a b é 日");
  EXPECT_EQ(shown("a\nb\tc\r\x1b[2J\x7f"), "a\\nb\\tc\\r\\x1B[2J\\x7F");
  EXPECT_EQ(shown("\xff|\xc3"), "\\xFF|\\xC3");
  EXPECT_EQ(shown("\u202egnp"), "\\xE2\\x80\\xAEgnp");  // turns the direction of what follows
  EXPECT_EQ(shown(std::string(80, 'x')), std::string(80, 'x'));
  EXPECT_EQ(shown(std::string(81, 'x')), std::string(80, 'x') + "…");
  EXPECT_EQ(in_quotes("x\n"), "\"x\\n\"");
}

TEST(Error, IsOneLineOfLimitedLength) {
  EXPECT_STREQ(Error("a\nb: no such file").what(), "a\\nb: no such file");
  const std::string message = Error("begin " + std::string(1000000, 'x') + " end").what();
  EXPECT_LT(message.size(), 2000u);
  EXPECT_TRUE(message.starts_with("begin ") && message.ends_with(" end"));
}

}  // namespace
}  // namespace espalier
