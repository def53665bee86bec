// SPDX-License-Identifier: Apache-2.0
// PLPHP against the worked vector of docs/specs/plphp.md, section 8, a plain float64 loop, and its invariants.
#include "espalier/policies/plphp.h"

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
using test::run;
using Tokens = std::vector<int64_t>;
using Heads = std::vector<Tokens>;

// The worked vector's map as the last row of one layer; image tokens are 0 … 9.
Heads worked_vector(double divisor, const std::string& options = "", const std::string& name = "plphp") {
  const double a[2][10] = {{.10, .02, .05, .01, .03, .04, .02, .01, .02, .05},
                           {.01, .08, .02, .06, .01, .02, .05, .03, .01, .01}};
  ArraySignals signals;
  for (const auto& row : a) {
    Matrix head(11, 11);
    for (int64_t c = 0; c < 10; ++c) head.at(10, c) = row[c] / divisor;
    signals.attention[0].push_back(head);
  }
  const auto prompt = LayoutBuilder().image({1, 4}, 0).image({2, 3}, 0).text(1, 0).build(0);
  return run(make_policy(name + options), facts(1), prompt, signals).at(0).kept_per_head;
}

TEST(Plphp, WorkedVector) {
  EXPECT_EQ(worked_vector(1), (Heads{{0, 1, 2, 4, 5, 6, 9}, {0, 1, 2, 3, 5, 6, 7}}));
  EXPECT_EQ(worked_vector(2), (Heads{{0, 2, 5, 9}, {1, 3, 6, 7}}));
  EXPECT_EQ(worked_vector(4), (Heads{{0}, {1}}));
}

TEST(Plphp, RatesAreClippedAndAtLeastOneStays) {
  EXPECT_EQ(worked_vector(1, ":keep_ratio=9/10").at(0).size(), 10U);
  EXPECT_EQ(worked_vector(4, ":keep_ratio=1/10").at(0), (Tokens{0}));
  EXPECT_EQ(worked_vector(2, ":keep_ratio=0.19").at(0), (Tokens{0}));  // 1.9, rounded down
  EXPECT_EQ(worked_vector(4, ":delta=0").at(0).size(), 4U);
}

// Sums that float32 holds exactly: a mass on a threshold is balanced.
TEST(Plphp, ThresholdsAreStrict) {
  const auto prompt = LayoutBuilder().image({1, 8}, 0).text(1, 0).build(0);
  for (const auto& [mass, size] :
       {std::pair(.5, 4U), std::pair(.5 + 1. / 64, 6U), std::pair(.125, 4U), std::pair(.0625, 2U)}) {
    Matrix head(9, 9);
    head.at(8, 3) = mass;
    ArraySignals signals;
    signals.attention[0] = {head, head};
    const auto kept =
        run(make_policy("plphp:keep_ratio=1/2,delta=1/4,alpha=0.5,beta=0.125"), facts(1), prompt, signals);
    EXPECT_EQ(kept.at(0).kept_per_head.at(1).size(), size) << mass;
  }
}

// Four query heads on two KV heads, all layers, two images in one pool.
TEST(Plphp, SharedHeadsAgainstALoop) {
  ModelFacts model = facts(6);
  model.num_heads = 4;
  const auto prompt = LayoutBuilder().text(2, 0).image({3, 3}, 0).text(1, 0).image({2, 4}, 0).text(9, 0).build(0);
  const Tokens image = test::image_tokens_of(*prompt);
  for (uint64_t seed = 1; seed < 9; ++seed) {
    const ArraySignals signals = test::random_signals(prompt->num_tokens, 6, 4, 6, seed);
    const auto points = run(make_plphp({.alpha = 0.6, .beta = 0.55}), model, prompt, signals);
    ASSERT_EQ(points.size(), 6U);
    for (int layer = 0; layer < 6; ++layer) {
      const std::vector<Matrix>& heads = signals.attention.at(layer);
      double mass = 0;
      for (const Matrix& head : heads)
        for (const int64_t t : image) mass += head.at(head.rows - 1, t) / 4;
      const auto k = static_cast<size_t>(mass > 0.6 ? 17 * 7 / 10 : mass < 0.55 ? 1 : 17 * 4 / 10);
      EXPECT_NEAR(std::accumulate(points[layer].scores.begin(), points[layer].scores.end(), 0.0), mass, 1e-6);
      for (int g = 0; g < 2; ++g) {
        Tokens order = image;
        const auto score = [&](int64_t t) {
          return heads[2 * g].at(heads[0].rows - 1, t) + heads[2 * g + 1].at(heads[0].rows - 1, t);
        };
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score(a) > score(b); });
        order.resize(k);
        std::sort(order.begin(), order.end());
        EXPECT_EQ(points[layer].site, "cache");
        EXPECT_EQ(points[layer].kept_per_head.at(g), order) << "layer " << layer << ", head " << g;
      }
    }
  }
}

TEST(Plphp, ARaisedAlphaNeverKeepsMoreAndHeadsPermute) {
  const auto prompt = LayoutBuilder().text(2, 0).image({3, 3}, 0).text(2, 0).build(0);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, 4);
  ArraySignals swapped = signals;
  for (auto& [layer, heads] : swapped.attention) std::swap(heads[0], heads[1]);
  std::vector<size_t> before(8, 9);
  for (const double alpha : {0.1, 0.4, 0.6, 0.7, 0.8, 1.0}) {
    const auto points = run(make_plphp({.alpha = alpha}), facts(8), prompt, signals);
    const auto other = run(make_plphp({.alpha = alpha}), facts(8), prompt, swapped);
    for (size_t layer = 0; layer < 8; ++layer) {
      EXPECT_LE(points[layer].kept_per_head[0].size(), before[layer]);
      before[layer] = points[layer].kept_per_head[0].size();
      EXPECT_EQ(points[layer].kept_per_head[0], other[layer].kept_per_head[1]);
      EXPECT_EQ(points[layer].kept_per_head[1], other[layer].kept_per_head[0]);
    }
  }
}

TEST(Plphp, PinnedTokensAndFloorsAreInEveryList) {
  const auto prompt = LayoutBuilder().text(2, 0).image({3, 3}, 0).image({1, 3}, 0).text(20, 0).pin({2, 5, 9}).build(0);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 2, 6, 4);
  const auto points = run(make_policy("plphp:alpha=1,beta=1,min_per_image=2"), facts(4), prompt, signals);
  for (const auto& point : points)
    for (const Tokens& kept : point.kept_per_head) {
      EXPECT_EQ(kept.size(), 5U);  // 1.2 by the rate
      for (const int64_t t : {2, 5, 9}) EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), t));
      EXPECT_EQ(std::count_if(kept.begin(), kept.end(), [](int64_t t) { return t >= 11; }), 2);
    }
}

TEST(Plphp, WhatCannotBeIsRefusedAndSpecsComeBack) {
  for (const char* spec : {"plphp:keep_ratio=0", "plphp:keep_ratio=3/2", "plphp:delta=2", "plphp:alpha=0.1,beta=0.2",
                           "plphp:num_kept=4", "plphp:keep_ratio=0.12345678912"})
    EXPECT_THROW(make_policy(spec), Error) << spec;
  EXPECT_EQ(make_policy("plphp:keep_ratio=1/3,beta=0.05")->spec(), "plphp:keep_ratio=1/3,beta=0.05");
  const auto prompt = LayoutBuilder().text(5, 0).build(0);
  EXPECT_TRUE(test::points_of(make_policy("plphp"), facts(4), *prompt).empty());
}

}  // namespace
}  // namespace espalier
