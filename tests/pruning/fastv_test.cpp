// SPDX-License-Identifier: Apache-2.0
// FastV against the vectors of docs/specs/fastv.md, section 12, and its invariants on attention from a full softmax.
#include "espalier/policies/fastv.h"

#include <gtest/gtest.h>

#include <numeric>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;

using Tokens = std::vector<int64_t>;

PolicyPtr keep(int64_t number, FastvOptions::Rows rows = FastvOptions::Rows::kLast) {
  return make_fastv({.amount = {.keep_ratio = {}, .num_kept = number}, .rows = rows});
}

// Attention of one layer: layer 1, which `layer=2` reads.
ArraySignals of_layer_1(std::vector<Matrix> heads) {
  ArraySignals signals;
  signals.attention[1] = std::move(heads);
  return signals;
}

TEST(Fastv, TiesGoToTheLowerIndexV1) {
  Matrix h0(8, 8), h1(8, 8);
  const double row0[] = {4, 4, 16, 4, 8, 12, 8, 8}, row1[] = {4, 4, 8, 20, 8, 12, 4, 4};
  for (int64_t c = 0; c < 8; ++c) {
    h0.at(7, c) = row0[c] / 64;
    h1.at(7, c) = row1[c] / 64;
  }
  const auto prompt = LayoutBuilder().text(2, 0).image({2, 2}, 0).text(2, 0).build(0);
  const auto signals = of_layer_1({h0, h1});
  EXPECT_EQ(kept_at_end(keep(2), facts(4), prompt, signals), (Tokens{2, 3}));
  EXPECT_EQ(kept_at_end(keep(3), facts(4), prompt, signals), (Tokens{2, 3, 5}));
}

TEST(Fastv, RowsMatterV2) {
  const Matrix a = {
      {1, 0, 0, 0, 0}, {.5, .5, 0, 0, 0}, {.25, .25, .5, 0, 0}, {.25, .5, .125, .125, 0}, {.125, .125, .25, .25, .25}};
  const auto prompt = LayoutBuilder().text(1, 0).image({1, 3}, 0).text(1, 0).build(0);
  EXPECT_EQ(kept_at_end(keep(1), facts(4), prompt, of_layer_1({a})), (Tokens{2}));
  EXPECT_EQ(kept_at_end(keep(1, FastvOptions::Rows::kAll), facts(4), prompt, of_layer_1({a})), (Tokens{1}));
}

TEST(Fastv, ToySoftmaxV3) {
  std::vector<Matrix> heads;
  for (int64_t h = 0; h < 3; ++h)
    heads.push_back(test::causal_softmax(
        14, [h](int64_t q, int64_t k) { return static_cast<double>((7 * h + 3 * q + 5 * k + k * h) % 17) / 4; }));
  const auto prompt = LayoutBuilder().text(2, 0).image({2, 4}, 0).text(4, 0).build(0);
  const auto signals = of_layer_1(heads);
  const auto first = run(keep(1), facts(4), prompt, signals).at(0);
  const double expected[] = {.176810, .050382, .062364, .054782, .074575, .011958, .049146, .210158};
  ASSERT_EQ(first.scores.size(), 8U);
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(first.scores[i], expected[i], 1e-6);
  EXPECT_EQ(first.candidates, (Tokens{2, 3, 4, 5, 6, 7, 8, 9}));
  const auto ordinals = [&](int64_t number, FastvOptions::Rows rows) {
    Tokens kept = kept_at_end(keep(number, rows), facts(4), prompt, signals);
    for (int64_t& t : kept) t -= 2;
    return kept;
  };
  using Rows = FastvOptions::Rows;
  EXPECT_EQ(ordinals(1, Rows::kLast), (Tokens{7}));
  EXPECT_EQ(ordinals(2, Rows::kLast), (Tokens{0, 7}));
  EXPECT_EQ(ordinals(3, Rows::kLast), (Tokens{0, 4, 7}));
  EXPECT_EQ(ordinals(4, Rows::kLast), (Tokens{0, 2, 4, 7}));
  EXPECT_EQ(ordinals(6, Rows::kLast), (Tokens{0, 1, 2, 3, 4, 7}));
  EXPECT_EQ(ordinals(1, Rows::kAll), (Tokens{0}));
  EXPECT_EQ(ordinals(2, Rows::kAll), (Tokens{0, 1}));
  EXPECT_EQ(ordinals(3, Rows::kAll), (Tokens{0, 1, 2}));
  EXPECT_EQ(ordinals(4, Rows::kAll), (Tokens{0, 1, 2, 3}));
  EXPECT_EQ(ordinals(6, Rows::kAll), (Tokens{0, 1, 2, 3, 4, 6}));
}

// Three images, so that pools differ.
struct ThreeImages : ::testing::Test {
  std::shared_ptr<const PromptLayout> prompt =
      LayoutBuilder().text(2, -1).image({2, 2}, 0).text(3, 0).image({1, 5}, 1).image({3, 3}, 1).text(4, 1).build(1);
  ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 3, 6, 5);
};

TEST_F(ThreeImages, KeptSetsAreNestedAndScaleInvariant) {
  ArraySignals scaled = signals, swapped = signals;
  for (Matrix& head : scaled.attention[1])
    for (double& v : head.values) v *= 0.25;
  std::swap(swapped.attention[1][0], swapped.attention[1][2]);
  Tokens smaller;
  for (int64_t number = 0; number <= 18; ++number) {
    const Tokens kept = kept_at_end(keep(number), facts(4), prompt, signals);
    EXPECT_EQ(kept.size(), static_cast<size_t>(number));
    EXPECT_TRUE(std::includes(kept.begin(), kept.end(), smaller.begin(), smaller.end())) << number;
    EXPECT_EQ(kept, kept_at_end(keep(number), facts(4), prompt, scaled));
    EXPECT_EQ(kept, kept_at_end(keep(number), facts(4), prompt, swapped));
    smaller = kept;
  }
}

TEST_F(ThreeImages, APoolForEachImageKeepsAnEqualPart) {
  const auto points = run(make_policy("fastv:keep_ratio=1/2,pool=image"), facts(4), prompt, signals);
  ASSERT_EQ(points.size(), 1U);
  EXPECT_EQ(points[0].site, "before_layer");
  EXPECT_EQ(points[0].layer, 2);
  const auto count = [&](int64_t begin, int64_t end) {
    return std::count_if(points[0].kept.begin(), points[0].kept.end(),
                         [&](int64_t t) { return t >= begin && t < end; });
  };
  EXPECT_EQ(count(2, 6), 2);
  EXPECT_EQ(count(9, 14), 2);   // 2.5 to even
  EXPECT_EQ(count(14, 23), 4);  // 4.5 to even
}

TEST_F(ThreeImages, TheDepthItselfPrunesNothingAndMoreIsRefused) {
  EXPECT_TRUE(test::points_of(make_policy("fastv:keep_ratio=1/2,layer=4"), facts(4), *prompt).empty());
  EXPECT_TRUE(test::points_of(make_policy("fastv:keep_ratio=1"), facts(4), *prompt).empty());
  try {
    test::points_of(make_policy("fastv:keep_ratio=1/2,layer=5"), facts(4), *prompt);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "fastv: layer=5, but the model has 4 layers");
  }
}

}  // namespace
}  // namespace espalier
