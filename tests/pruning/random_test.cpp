// SPDX-License-Identifier: Apache-2.0
// Random pruning against the published vectors of SplitMix64 and those of docs/specs/random.md, section 9.
#include "espalier/policies/random.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using Tokens = std::vector<int64_t>;

TEST(SplitMix64, PublishedOutputs) {
  SplitMix64 zero(0), answer(42);
  for (const uint64_t expected : {0xe220a8397b1dcdafU, 0x6e789e6aa1b965f4U, 0x06c45d188009454fU})
    EXPECT_EQ(zero.next(), expected);
  for (const uint64_t expected : {0xbdd732262feb6e95U, 0x28efe333b266f103U, 0x47526757130f9f52U})
    EXPECT_EQ(answer.next(), expected);
}

// Kept ordinals of the image with this stream, behind `stream` others.
Tokens kept(int64_t n, int64_t number, uint64_t seed, int stream) {
  LayoutBuilder builder;
  for (int i = 0; i <= stream; ++i) builder.image({1, n}, 0);
  const auto policy = make_random({.amount = {.keep_ratio = {}, .num_kept = number}, .seed = seed});
  Tokens ordinals;
  for (const int64_t t : kept_at_end(policy, facts(4), builder.text(1, 0).build(0), {}))
    if (t >= stream * n) ordinals.push_back(t - stream * n);
  return ordinals;
}

TEST(Random, VectorsOfTheSpecification) {
  EXPECT_EQ(kept(10, 4, 0, 0), (Tokens{0, 3, 5, 9}));
  EXPECT_EQ(kept(10, 4, 0, 1), (Tokens{0, 2, 3, 7}));
  EXPECT_EQ(kept(10, 4, 1, 0), (Tokens{0, 2, 7, 8}));
  EXPECT_EQ(kept(16, 5, 42, 0), (Tokens{4, 8, 9, 10, 13}));
  EXPECT_EQ(kept(576, 8, 42, 0), (Tokens{20, 47, 68, 156, 237, 262, 368, 418}));
  EXPECT_EQ(kept(576, 8, 42, 1), (Tokens{10, 51, 174, 178, 329, 399, 430, 492}));
}

TEST(Random, SetsAreNestedAndUniform) {
  Tokens smaller;
  for (int64_t number = 0; number <= 12; ++number) {
    const Tokens larger = kept(12, number, 7, 0);
    EXPECT_EQ(larger.size(), static_cast<size_t>(number));
    EXPECT_TRUE(std::includes(larger.begin(), larger.end(), smaller.begin(), smaller.end()));
    smaller = larger;
  }
  std::vector<int> count(8);
  const auto prompt = LayoutBuilder().image({2, 4}, 0).text(1, 0).build(0);
  for (uint64_t seed = 0; seed < 4000; ++seed)
    for (const int64_t t :
         kept_at_end(make_random({.amount = {.keep_ratio = {}, .num_kept = 3}, .seed = seed}), facts(4), prompt, {}))
      ++count[static_cast<size_t>(t)];
  for (const int c : count) EXPECT_NEAR(c / 4000.0, 0.375, 0.03);
}

TEST(Random, PinnedTokensComeFirstAndTheDrawFillsTheRest) {
  const auto prompt = LayoutBuilder().image({1, 10}, 0).text(1, 0).pin({1, 4}).build(0);
  // Drawn 5, 3, 9, 0 (specification); two places are taken by the pinned.
  EXPECT_EQ(kept_at_end(make_policy("random:num_kept=4"), facts(4), prompt, {}), (Tokens{1, 3, 4, 5}));
}

}  // namespace
}  // namespace espalier
