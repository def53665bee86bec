// SPDX-License-Identifier: Apache-2.0
#include "base/error_text.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace espalier
