// SPDX-License-Identifier: Apache-2.0
// Budget arithmetic: exact rounding, the engine's cut, and CATP's counts against the table of docs/specs/catp.md,
// section 4.
#include <gtest/gtest.h>

#include "espalier/error.h"
#include "layout/ranking.h"
#include "pruning/catp_budget.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::LayoutBuilder;

TEST(Selection, RoundingIsExact) {
  EXPECT_EQ(rounded_share({1, 2}, 5, Rounding::kNearestEven), 2);
  EXPECT_EQ(rounded_share({1, 2}, 7, Rounding::kNearestEven), 4);
  EXPECT_EQ(rounded_share({2, 9}, 576, Rounding::kFloor), 128);
  EXPECT_EQ(rounded_share({111, 500}, 576, Rounding::kFloor), 127);  // 0.222
  EXPECT_EQ(rounded_share({2, 9}, 11, Rounding::kCeil), 3);
  EXPECT_EQ(rounded_share({1, 3}, 9, Rounding::kCeil), 3);
  // 0.3333333333 · 9 lies 1e-9 or less below 3; 0.33333333 · 9 does not.
  EXPECT_EQ(rounded_share({3333333333, 10000000000}, 9, Rounding::kFloor), 3);
  EXPECT_EQ(rounded_share({33333333, 100000000}, 9, Rounding::kFloor), 2);
  EXPECT_EQ(rounded_share({999999999999999999, 1000000000000000000}, 1'000'000, Rounding::kFloor), 1'000'000);
}

TEST(Selection, WhatAShareOfTheLossLeaves) {
  EXPECT_EQ(remaining_after({2, 9}, {1, 2}), (Fraction{11, 18}));
  EXPECT_EQ(remaining_after({2, 9}, {0, 1}), (Fraction{1, 1}));
  EXPECT_EQ(remaining_after({2, 9}, {1, 1}), (Fraction{2, 9}));
  EXPECT_THROW(remaining_after({1, 999999999999999989}, {1, 999999999999999967}), Error);
}

CatpBudget budget(std::vector<int64_t> sizes, CatpOptions options) {
  LayoutBuilder builder;
  for (size_t i = 0; i < sizes.size(); ++i)
    builder.image({1, sizes[i]}, static_cast<int>(i)).text(1, static_cast<int>(i));
  return catp_budget(options, *builder.build(static_cast<int>(sizes.size()) - 1));
}

CatpOptions keeping(Fraction ratio) {
  return {.amount = {.keep_ratio = ratio}};
}

TEST(CatpBudget, TableOfTheSpecification) {
  struct Row {
    Fraction keep_ratio;
    int64_t stage1, last, context;
  };
  for (const Row& row : {Row{{1, 3}, 384, 192, 768}, Row{{2, 9}, 352, 128, 512}, Row{{1, 9}, 320, 64, 256},
                         Row{{111, 500}, 351, 127, 511}}) {
    const CatpBudget b = budget({576, 576, 576, 576, 576}, keeping(row.keep_ratio));
    EXPECT_EQ(b.stage1, (std::vector<int64_t>(5, row.stage1)));
    EXPECT_EQ(b.context, row.context);
    EXPECT_EQ(b.query, row.last);
  }
  EXPECT_EQ(budget({600, 1000, 1280}, keeping({2, 9})).stage1, (std::vector<int64_t>{366, 611, 782}));
}

TEST(CatpBudget, PerGroupAndExactTotal) {
  CatpOptions options = keeping({2, 9});
  EXPECT_EQ(budget({8, 8, 11}, options).context, 3);
  EXPECT_EQ(budget({8, 8, 11}, options).query, 2);
  options.counts = CatpOptions::Counts::kExactTotal;
  EXPECT_EQ(budget({8, 8, 11}, options).context, 3);
  EXPECT_EQ(budget({8, 8, 11}, options).query, 3);
}

TEST(CatpBudget, NumKeptStandsForARatioOfAllPatches) {
  CatpOptions options;
  options.amount.num_kept = 6;  // of 27: 2/9
  EXPECT_EQ(budget({8, 8, 11}, options).stage1, budget({8, 8, 11}, keeping({2, 9})).stage1);
  EXPECT_EQ(budget({8, 8, 11}, options).context, 3);
  options.amount.num_kept = 100;
  EXPECT_FALSE(budget({8, 8, 11}, options).prunes_stage1);
}

// budget=mean: 10/7 of the amount before the cut, and behind it what makes the mean over layers the amount.
TEST(CatpBudget, MeanOverLayers) {
  CatpOptions options;
  options.ranking = CatpOptions::Ranking::kPerImage;
  options.query_cut = CatpOptions::QueryCut::kTogether;
  options.budget = CatpOptions::BudgetOf::kMean;
  const auto counts = [&](Fraction ratio, int k, int num_layers) {
    options.amount.keep_ratio = ratio;
    const auto prompt = LayoutBuilder().image({8, 8}, 0).text(1, 0).image({8, 8}, 1).text(1, 1).build(1);
    const CatpBudget b = catp_budget(options, *prompt, {k, num_layers});
    EXPECT_EQ(b.per_image[0], b.per_image[1]);
    return std::pair(b.stage1[1], b.per_image[1]);
  };
  EXPECT_EQ(counts({7, 64}, 2, 8), std::pair(int64_t{10}, int64_t{6}));  // 2 · 10 + 6 · 6 = 8 · 7
  EXPECT_EQ(counts({14, 64}, 2, 8), std::pair(int64_t{20}, int64_t{12}));
  EXPECT_EQ(counts({56, 64}, 2, 8), std::pair(int64_t{64}, int64_t{53}));  // above 7/10 all stay; (8 · 56 - 2 · 64) / 6
  EXPECT_EQ(counts({64, 64}, 2, 8), std::pair(int64_t{64}, int64_t{64}));
  options.query_cut = CatpOptions::QueryCut::kAfter;  // the query is cut a layer later: 3 · 10 + 5 · 5.2 = 8 · 7
  options.selection = CatpOptions::Selection::kDpp;
  options.amount.keep_ratio = Fraction{7, 64};
  const auto prompt = LayoutBuilder().image({8, 8}, 0).text(1, 0).image({8, 8}, 1).text(1, 1).build(1);
  EXPECT_EQ(catp_budget(options, *prompt, {2, 8}).per_image, (std::vector<int64_t>{6, 5}));
  options.query_cut = CatpOptions::QueryCut::kTogether;
  try {
    counts({1, 2}, 6, 8);
    FAIL() << "k=6 of 8 leaves nothing";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "catp: budget=mean leaves nothing for the layers from 6 on, of 8: k must be below 7/10 of the depth");
  }
}

TEST(CatpBudget, EachGroupKeepsAtLeastOne) {
  const CatpBudget b = budget({2, 1, 3}, keeping({1, 100}));
  EXPECT_EQ(b.stage1, (std::vector<int64_t>{1, 1, 1}));
  EXPECT_EQ(b.context, 1);
  EXPECT_EQ(b.query, 1);
}

TEST(Selection, TheCutHonoursPinsAndFloors) {
  const auto prompt = LayoutBuilder().image({1, 4}, 0).image({1, 2}, 0).text(1, 0).pin({1}).build(0);
  const TokenLayout layout = full_layout(prompt, false);
  const PlannedStep planned{.step = {.policy = "mine"}, .counts = {3}};
  const auto kept = [&](int64_t min_per_image) {
    const Verdict verdict{.scores = test::to_floats({5, 1, 4, 3, 2, 0}, {6})};
    return test::to_vector(cut_of(layout, planned, verdict, min_per_image).kept);
  };
  EXPECT_EQ(kept(0), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(kept(1), (std::vector<int64_t>{0, 1, 4}));
}

}  // namespace
}  // namespace espalier
