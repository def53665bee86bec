// SPDX-License-Identifier: Apache-2.0
// PyramidDrop against the worked vector of docs/specs/pyramiddrop.md, section 9, its invariants, and a float64 loop.
#include "espalier/policies/pyramiddrop.h"

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

TEST(Pyramiddrop, WorkedVectorAndNoRevival) {
  const auto prompt = LayoutBuilder().image({1, 8}, 0).text(1, 0).build(0);
  const double rows[2][8] = {{.1, .9, .3, .7, .2, .8, .4, .6}, {0, .1, .9, .8, .9, .2, .9, .3}};
  for (const char* rank : {"next", "previous"}) {
    const int shift = std::string(rank) == "next" ? 0 : 1;
    ArraySignals signals;
    for (int stage = 0; stage < 2; ++stage) {
      Matrix row(9, 9);
      for (int64_t c = 0; c < 8; ++c) row.at(8, c) = rows[stage][c];
      signals.attention[3 + 2 * stage - shift] = {row};
    }
    const auto points = run(make_policy("pyramiddrop:keep_ratio=1/2:1/4,layers=3:5,rank=" + std::string(rank)),
                            facts(8), prompt, signals);
    ASSERT_EQ(points.size(), 2U);
    EXPECT_EQ(points[0].kept, (Tokens{1, 3, 5, 7}));
    EXPECT_EQ(points[1].kept, (Tokens{3, 7}));
  }
}

// The `number` of `alive` with the largest mean attention from `row`.
Tokens best(const std::vector<Matrix>& heads, int64_t row, Tokens alive, int64_t number) {
  const auto score = [&](int64_t t) {
    double sum = 0;
    for (const Matrix& head : heads) sum += head.at(row, t);
    return sum;
  };
  std::stable_sort(alive.begin(), alive.end(), [&](int64_t a, int64_t b) { return score(a) > score(b); });
  alive.resize(static_cast<size_t>(number));
  std::sort(alive.begin(), alive.end());
  return alive;
}

TEST(Pyramiddrop, QuotasOfEachImageAgainstALoop) {
  const auto prompt =
      LayoutBuilder().text(2, -1).image({3, 3}, 0).text(2, 0).image({1, 1}, 1).image({2, 7}, 1).text(3, 1).build(1);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 3, 6, 21);
  const auto points = run(make_policy("pyramiddrop"), facts(8), prompt, signals);  // layers 2, 4, 6
  ASSERT_EQ(points.size(), 3U);
  Tokens images[3];
  const int64_t begin[] = {2, 13, 14}, end[] = {11, 14, 28};
  for (int i = 0; i < 3; ++i) {
    images[i].resize(end[i] - begin[i]);
    std::iota(images[i].begin(), images[i].end(), begin[i]);
  }
  const int64_t quota[3][3] = {{4, 1, 7}, {2, 1, 3}, {1, 1, 1}};  // floor(n/2), floor(n/4), floor(n/8); at least 1
  for (int stage = 0; stage < 3; ++stage) {
    EXPECT_EQ(points[stage].layer, 2 * stage + 2);
    Tokens expected;
    for (int i = 0; i < 3; ++i) {
      images[i] = best(signals.attention.at(2 * stage + 2), prompt->num_tokens - 1, images[i], quota[stage][i]);
      expected.insert(expected.end(), images[i].begin(), images[i].end());
    }
    EXPECT_EQ(points[stage].kept, expected) << stage;
  }
}

TEST(Pyramiddrop, EqualScoresKeepTheLowestAndRatiosOfOneDoNothing) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).text(1, 0).build(0);
  ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 1, 4, 3);
  for (auto& [layer, heads] : signals.attention)
    for (Matrix& head : heads) std::fill(head.values.begin(), head.values.end(), 0.125);
  const auto points = run(make_policy("pyramiddrop"), facts(8), prompt, signals);
  ASSERT_EQ(points.size(), 3U);
  EXPECT_EQ(points[0].kept, (Tokens{1, 2, 3, 4}));
  EXPECT_EQ(points[2].kept, (Tokens{1}));
  EXPECT_TRUE(test::points_of(make_policy("pyramiddrop:keep_ratio=1:1:1"), facts(8), *prompt).empty());
  EXPECT_EQ(test::points_of(make_policy("pyramiddrop:keep_ratio=1"), facts(8), *prompt).size(),
            2U);  // starts a list: 1, 1/2, 1/4
}

// 576 -> 288 -> 144 -> 72 before layers 8, 16, 24 of 32: 270 tokens in the mean layer, as published.
TEST(Pyramiddrop, TheDefaultScheduleIsThePublishedOne) {
  const auto prompt = LayoutBuilder().text(1, 0).image({24, 24}, 0).text(1, 0).build(0);
  ArraySignals alike;
  for (const int layer : {8, 16, 24}) alike.attention[layer] = {Matrix(578, 578)};
  int64_t sum = 0, before = 576, from = 0;
  for (const auto& point : run(make_policy("pyramiddrop"), facts(32), prompt, alike)) {
    sum += before * (point.layer - from);
    before = std::ssize(point.kept);
    from = point.layer;
  }
  EXPECT_EQ(sum + before * (32 - from), 270 * 32);
  EXPECT_EQ(test::points_of(make_policy("pyramiddrop"), facts(40), *prompt),
            (std::vector<ActPoint>{{Site::kBeforeLayer, 10}, {Site::kBeforeLayer, 20}, {Site::kBeforeLayer, 30}}));
}

TEST(Pyramiddrop, WhatCannotBeIsRefusedAndSpecsComeBack) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).text(1, 0).build(0);
  for (const char* spec :
       {"pyramiddrop:keep_ratio=1/4:1/2:1/8", "pyramiddrop:keep_ratio=1/2:1/4", "pyramiddrop:num_kept=4",
        "pyramiddrop:keep_ratio=1/2,num_kept=3:2:1", "pyramiddrop:keep_ratio=2"})
    EXPECT_THROW(make_policy(spec), Error) << spec;
  for (const char* spec :
       {"pyramiddrop:layers=2:2:3", "pyramiddrop:layers=2:3:9", "pyramiddrop:layers=0:2:3,rank=previous"})
    EXPECT_THROW(test::points_of(make_policy(spec), facts(8), *prompt), Error) << spec;
  for (const char* spec :
       {"pyramiddrop", "pyramiddrop:keep_ratio=1/3,rank=previous", "pyramiddrop:num_kept=5:2,layers=3:4"})
    EXPECT_EQ(make_policy(spec)->spec(), spec);
}

}  // namespace
}  // namespace espalier
