// SPDX-License-Identifier: Apache-2.0
// Evenly spaced tokens against the definition, counted out in rationals.
#include "espalier/policies/uniform.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using Tokens = std::vector<int64_t>;

Tokens kept(int64_t n, int64_t number) {
  const auto policy = make_uniform({.amount = {.keep_ratio = {}, .num_kept = number}});
  return kept_at_end(policy, facts(4), LayoutBuilder().image({1, n}, 0).text(1, 0).build(0), {});
}

TEST(Uniform, SmallCasesByHand) {
  EXPECT_EQ(kept(4, 1), (Tokens{2}));            // 2
  EXPECT_EQ(kept(4, 2), (Tokens{1, 3}));         // 1, 3
  EXPECT_EQ(kept(10, 4), (Tokens{1, 3, 6, 8}));  // 1.25, 3.75, 6.25, 8.75
  EXPECT_EQ(kept(7, 3), (Tokens{1, 3, 5}));      // 7/6, 21/6, 35/6
  EXPECT_EQ(kept(5, 4), (Tokens{0, 1, 3, 4}));   // 0.625, 1.875, 3.125, 4.375
  EXPECT_EQ(kept(3, 9), (Tokens{0, 1, 2}));      // more than there are
  EXPECT_EQ(kept(576, 3), (Tokens{96, 288, 480}));
}

// No two gaps differ by more than one, and each ordinal i satisfies k·ordinal <= (i + 1/2)·n < k·(ordinal + 1).
TEST(Uniform, EverySizeMeetsTheDefinition) {
  for (int64_t n = 1; n <= 40; ++n)
    for (int64_t k = 1; k <= n; ++k) {
      const Tokens tokens = kept(n, k);
      ASSERT_EQ(std::ssize(tokens), k);
      for (int64_t i = 0; i < k; ++i) {
        EXPECT_LE(2 * k * tokens[i], (2 * i + 1) * n);
        EXPECT_GT(2 * k * (tokens[i] + 1), (2 * i + 1) * n);
      }
    }
}

TEST(Uniform, EachImageHasAPoolOfItsOwnAndRowBreaksCompete) {
  LayoutBuilder builder;
  builder.text(1, 0).image({1, 4}, 0).row_break(0, 0).image({1, 2}, 0).text(1, 0);
  const auto prompt = builder.build(0);
  EXPECT_EQ(kept_at_end(make_policy("uniform:num_kept=1"), facts(4), prompt, {}), (Tokens{3, 7}));
  EXPECT_EQ(kept_at_end(make_policy("uniform:num_kept=1,row_breaks=follow"), facts(4), prompt, {}), (Tokens{3, 7}));
  EXPECT_EQ(kept_at_end(make_policy("uniform:num_kept=3"), facts(4), prompt, {}), (Tokens{1, 3, 5, 6, 7}));
}

TEST(Uniform, PinnedTokensComeFirstAndTheRestIsEven) {
  const auto prompt = LayoutBuilder().image({1, 10}, 0).image({1, 4}, 0).text(1, 0).pin({1, 4, 11}).build(0);
  // Two places of image 0 are left over 0 2 3 5 6 7 8 9: ranks 2 and 6.
  EXPECT_EQ(kept_at_end(make_policy("uniform:num_kept=4"), facts(4), prompt, {}), (Tokens{1, 3, 4, 8, 10, 11, 12, 13}));
  EXPECT_THROW(test::points_of(make_policy("uniform:num_kept=1"), facts(4), *prompt), Error);
}

}  // namespace
}  // namespace espalier
