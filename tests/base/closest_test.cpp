// SPDX-License-Identifier: Apache-2.0
#include "base/closest.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace espalier {
namespace {

std::string meant(std::string_view word) {
  static const std::vector<std::string_view> known = {"fastv", "divprune", "catp", "catp+", "keep_ratio"};
  return did_you_mean(word, known);
}

TEST(DidYouMean, TakesTheWordWithTheFewestChanges) {
  EXPECT_EQ(meant("fatsv"), " (did you mean fastv?)");  // exchanged
  EXPECT_EQ(meant("fast"), " (did you mean fastv?)");   // left out
  EXPECT_EQ(meant("divvprune"), " (did you mean divprune?)");
  EXPECT_EQ(meant("catp-"), " (did you mean catp?)");  // of two as near the first
  EXPECT_EQ(meant("keepratio"), " (did you mean keep_ratio?)");
}

TEST(DidYouMean, SaysNothingOfWordsFarAway) {
  EXPECT_EQ(meant("visionzip"), "");
  EXPECT_EQ(meant("kp_ro"), "");
  EXPECT_EQ(meant(""), "");
  EXPECT_EQ(meant(std::string(10000, 'a')), "");
  EXPECT_EQ(did_you_mean("a", {}), "");
}

}  // namespace
}  // namespace espalier
