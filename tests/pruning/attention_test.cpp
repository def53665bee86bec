// SPDX-License-Identifier: Apache-2.0
// Attention ranking of each image against a float64 loop over the maps, for each choice of rows.
#include "espalier/policies/attention.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using test::Matrix;
using Rows = AttentionOptions::Rows;
using Tokens = std::vector<int64_t>;

// Text at 0 1, 6 7 8 (example 0), 14, 18 19 20 (example 1); image 1 has no text of its own.
struct TwoExamples : ::testing::Test {
  std::shared_ptr<const PromptLayout> prompt = LayoutBuilder()
                                                   .text(2, -1)
                                                   .image({2, 2}, 0)
                                                   .text(3, 0)
                                                   .image({1, 5}, 0)
                                                   .text(1, 1)
                                                   .image({1, 3}, 1)
                                                   .text(3, 1)
                                                   .build(1);
  ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 3, 6, 9);

  // The `number` tokens of [begin, end) with the largest mean attention from `rows`, of layer 1.
  Tokens best(int64_t begin, int64_t end, const Tokens& rows, int64_t number) const {
    Tokens order;
    std::vector<double> score(prompt->num_tokens, 0.0);
    for (int64_t t = begin; t < end; ++t) {
      order.push_back(t);
      for (const Matrix& head : signals.attention.at(1))
        for (const int64_t r : rows) score[t] += head.at(r, t);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
    order.resize(number);
    std::sort(order.begin(), order.end());
    return order;
  }
  Tokens expected(const std::function<Tokens(int)>& rows_of_image) const {
    Tokens all;
    const int64_t begin[] = {2, 9, 15}, end[] = {6, 14, 18};
    for (int i = 0; i < 3; ++i)
      for (const int64_t t : best(begin[i], end[i], rows_of_image(i), 2)) all.push_back(t);
    return all;
  }
  Tokens kept(Rows rows) const {
    const auto policy = make_attention({.amount = {.keep_ratio = {}, .num_kept = 2}, .layer = 2, .rows = rows});
    return kept_at_end(policy, facts(4), prompt, signals);
  }
};

TEST_F(TwoExamples, EachChoiceOfRowsRanksByItsMean) {
  Tokens all(prompt->num_tokens);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(kept(Rows::kAll), expected([&](int) { return all; }));
  EXPECT_EQ(kept(Rows::kLast), expected([](int) { return Tokens{20}; }));
  EXPECT_EQ(kept(Rows::kQueryText), expected([](int) { return Tokens{14, 18, 19, 20}; }));
  EXPECT_EQ(kept(Rows::kOwnText), expected([](int image) {
              if (image == 0) return Tokens{6, 7, 8};
              return image == 1 ? Tokens{20} : Tokens{18, 19, 20};
            }));
}

// Behind a policy that has dropped tokens, text and images are found where they stand now.
TEST_F(TwoExamples, RowsAreFoundInAPrunedSequence) {
  const Tokens even = kept_at_end(make_policy("uniform:num_kept=3"), facts(4), prompt, signals);
  for (const char* rows : {"all", "last", "own_text", "query_text"}) {
    const auto points = run(make_policy("uniform:num_kept=3 + attention:layer=2,num_kept=1,rows=" + std::string(rows)),
                            facts(4), prompt, signals);
    ASSERT_EQ(points.size(), 2U);
    EXPECT_EQ(points[1].candidates, even);
    ASSERT_EQ(points[1].scores.size(), even.size());
    if (std::string(rows) == "own_text") {
      for (size_t i = 0; i < even.size(); ++i) {
        const Tokens text = even[i] < 6 ? Tokens{6, 7, 8} : even[i] < 14 ? Tokens{20} : Tokens{18, 19, 20};
        double mean = 0;
        for (const Matrix& head : signals.attention.at(1))
          for (const int64_t r : text) mean += head.at(r, even[i]) / static_cast<double>(3 * text.size());
        EXPECT_NEAR(points[1].scores[i], mean, 1e-6);
      }
    }
  }
}

TEST_F(TwoExamples, WhatCannotBeIsRefused) {
  EXPECT_THROW(make_policy("attention:keep_ratio=1/2"), Error);  // no layer
  EXPECT_THROW(make_policy("attention:keep_ratio=1/2,layer=0"), Error);
  EXPECT_THROW(make_policy("attention:layer=2"), Error);
  EXPECT_THROW(test::points_of(make_policy("attention:keep_ratio=1/2,layer=5"), facts(4), *prompt), Error);
  EXPECT_TRUE(test::points_of(make_policy("attention:keep_ratio=1/2,layer=4"), facts(4), *prompt).empty());
  const auto silent = LayoutBuilder().text(2, 0).image({2, 2}, 0).text(1, 0).build(3);
  EXPECT_THROW(test::points_of(make_policy("attention:keep_ratio=1/2,layer=2,rows=query_text"), facts(4), *silent),
               Error);
}

}  // namespace
}  // namespace espalier
