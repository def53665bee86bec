// SPDX-License-Identifier: Apache-2.0
// FitPrune: the published recipes against their published reductions, and applying one against docs/specs/fitprune.md,
// V3.
#include "espalier/policies/fitprune.h"

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

// Visual multiply-accumulates of LLaVA's 7B decoder: before the tokens leave a layer, and behind.
double reduction(const FitpruneRecipe& recipe) {
  const double d = 4096, m = 11008;
  const auto pre = [&](double n) { return 3 * n * d * d + 2 * n * n * d; };
  const auto post = [&](double n) { return n * d * d + 3 * n * d * m; };
  double cost = 0, n = static_cast<double>(recipe.num_visual);
  const double full = 32 * (pre(n) + post(n));
  for (const int64_t deleted : recipe.deleted) {
    cost += pre(n);
    n -= static_cast<double>(deleted);
    cost += post(n);
  }
  return 100 * (1 - cost / full);
}

TEST(Fitprune, PublishedRecipesReduceAsPublished) {
  const struct {
    const char* name;
    int64_t sum;
    double reduction;
  } table[] = {{"llava15-7b-10", 66, 6.4},   {"llava15-7b-20", 149, 15.4},    {"llava15-7b-30", 264, 27.9},
               {"llava15-7b-40", 336, 38.9}, {"llava15-7b-50", 403, 49.7},    {"llava15-7b-55", 424, 54.5},
               {"llava15-7b-60", 449, 59.7}, {"llava15-7b-70", 488, 69.7},    {"llava15-7b-80", 514, 79.7},
               {"llava15-7b-90", 539, 89.7}, {"llavanext-7b-40", 1512, 40.3}, {"llavanext-7b-60", 2096, 60.3}};
  for (const auto& row : table) {
    const FitpruneRecipe recipe = published_fitprune_recipe(row.name);
    EXPECT_EQ(std::accumulate(recipe.deleted.begin(), recipe.deleted.end(), int64_t{0}), row.sum) << row.name;
    EXPECT_NEAR(reduction(recipe), row.reduction, 0.06) << row.name;  // published after rounding twice
  }
}

PolicyPtr recipe_of(std::vector<int64_t> deleted, int64_t num_visual) {
  return make_fitprune({.recipe = {"made-up", num_visual, std::move(deleted)}});
}

// Maps of the vector, cut to the tokens that are left and normalised again.
ArraySignals renormalised(const std::vector<Matrix>& heads, int layer, const Tokens& alive) {
  ArraySignals signals;
  for (const Matrix& full : heads) {
    Matrix head(full.rows, full.cols);
    for (const int64_t q : alive) {
      double sum = 0;
      for (const int64_t k : alive) sum += full.at(q, k);
      for (const int64_t k : alive) head.at(q, k) = full.at(q, k) / sum;
    }
    signals.attention[layer].push_back(head);
  }
  return signals;
}

TEST(Fitprune, AppliesAsInV3) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).text(3, 0).build(0);
  PolicyWalk walk(recipe_of({1, 2, 0, 3}, 8), facts(4), prompt);
  std::vector<Tokens> kept;
  while (const ActPoint* point = walk.next()) {
    std::vector<Matrix> heads;
    for (int64_t h = 0; h < 2; ++h)
      heads.push_back(test::causal_softmax(12, [&](int64_t q, int64_t k) {
        return static_cast<double>((11 * point->layer + 7 * h + 3 * q + 5 * k + k * h) % 17) / 4;
      }));
    const ArraySignals signals = renormalised(heads, point->layer, test::to_vector(walk.layout().source_index));
    walk.act(std::vector<at::Tensor>{signals.answer(walk.needs().at(0), *point, walk.layout())});
  }
  const auto points = walk.trace(true);
  ASSERT_EQ(points.size(), 3U);
  EXPECT_EQ(points[0].site, "after_attention");
  EXPECT_EQ(points[0].layer, 0);
  EXPECT_EQ(points[0].kept, (Tokens{1, 2, 3, 4, 5, 6, 8}));
  EXPECT_EQ(points[1].kept, (Tokens{1, 2, 3, 4, 5}));
  EXPECT_EQ(points[2].layer, 3);
  EXPECT_EQ(points[2].kept, (Tokens{1, 2}));
  const double products[] = {.050211, .046855, .019747, .040376, .018814, .007213, .002194, .003139};
  ASSERT_EQ(points[0].scores.size(), 8U);
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(points[0].scores[i], products[i], 1e-6);
}

TEST(Fitprune, CountsAreScaledToTheRequest) {
  const auto prompt = LayoutBuilder().image({3, 4}, 0).text(1, 0).image({2, 4}, 0).text(3, 0).build(0);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 2, 6, 5);
  const auto points = run(recipe_of({3, 0, 1, 2}, 8), facts(4), prompt, signals);  // 7.5, 0, 2.5, 5 of 20
  ASSERT_EQ(points.size(), 3U);
  EXPECT_EQ(points[0].kept.size(), 13U);
  EXPECT_EQ(points[1].kept.size(), 11U);
  EXPECT_EQ(points[2].kept.size(), 6U);
  for (size_t i = 1; i < 3; ++i)
    EXPECT_TRUE(std::includes(points[i - 1].kept.begin(), points[i - 1].kept.end(), points[i].kept.begin(),
                              points[i].kept.end()));
  EXPECT_TRUE(test::points_of(recipe_of({0, 0, 0, 0}, 8), facts(4), *prompt).empty());
  EXPECT_TRUE(test::points_of(recipe_of({1, 1, 1, 1}, 8), facts(4), *LayoutBuilder().text(2, 0).build(0)).empty());
}

TEST(Fitprune, EqualScoresKeepTheLowestAndPinsAndFloorsStay) {
  const auto prompt = LayoutBuilder().image({1, 5}, 0).image({1, 5}, 0).text(2, 0).pin({3}).build(0);
  ArraySignals signals;
  for (int layer = 0; layer < 2; ++layer) {
    Matrix alike(12, 12);
    std::fill(alike.values.begin(), alike.values.end(), 0.125);
    signals.attention[layer] = {alike, alike};
  }
  const auto points = run(recipe_of({6, 4}, 10), facts(2), prompt, signals);
  EXPECT_EQ(points.at(0).kept, (Tokens{0, 1, 2, 3}));
  EXPECT_EQ(points.at(1).kept, (Tokens{3}));
  const auto floors = run(make_fitprune({.recipe = {"made-up", 10, {6, 4}}, .common = {.min_per_image = 2}}), facts(2),
                          prompt, signals);
  ASSERT_EQ(floors.size(), 1U);
  EXPECT_EQ(floors[0].kept, (Tokens{0, 3, 5, 6}));
}

TEST(Fitprune, WhatCannotBeIsRefusedAndSpecsComeBack) {
  const auto prompt = LayoutBuilder().image({3, 4}, 0).text(1, 0).build(0);
  EXPECT_THROW(make_policy("fitprune"), Error);
  EXPECT_THROW(make_policy("fitprune:recipe=llava15-7b-65"), Error);
  EXPECT_THROW(test::points_of(make_policy("fitprune:recipe=llava15-7b-60"), facts(40), *prompt), Error);
  EXPECT_THROW(recipe_of({5, 4}, 8), Error);
  EXPECT_THROW(recipe_of({-1, 4}, 8), Error);
  EXPECT_THROW(test::points_of(recipe_of({1}, 8), facts(1), *LayoutBuilder().text(1, 0).image({3, 4}, 0).build(0)),
               Error);
  EXPECT_EQ(make_policy("fitprune:recipe=llavanext-7b-40")->spec(), "fitprune:recipe=llavanext-7b-40");
}

}  // namespace
}  // namespace espalier
